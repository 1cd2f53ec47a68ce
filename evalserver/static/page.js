// What the page does beyond links and forms, which work without it: the live part renews itself,
// curves follow their selects, and rollouts play in place.
"use strict";

const live = document.getElementById("live");
const curves = document.getElementById("curves");
const imitation = document.getElementById("imitation");
const player = document.getElementById("player");
const video = document.getElementById("video");
const said = document.getElementById("said");
const LIVE_MILLISECONDS = 2000;
const CURVES_MILLISECONDS = 15000;

async function renew(element, url) {
  if (document.hidden) return;
  try {
    const reply = await fetch(url, { cache: "no-store" });
    if (reply.ok) element.innerHTML = await reply.text();
  } catch (error) {
    // The server is away; the next round tries again.
  }
}

function curvesUrl() {
  const chosen = new URLSearchParams({ run: live.dataset.run });
  for (const select of curves.querySelectorAll("select")) chosen.set(select.name, select.value);
  return "/curves?" + chosen;
}

let asking = new AbortController();

async function play(url) {
  asking.abort(); // Nobody waits for the last one any more: the server drops it.
  const mine = (asking = new AbortController());
  said.textContent = "running the policy and drawing it …";
  try {
    const reply = await fetch(url, { signal: mine.signal });
    if (!reply.ok) {
      const problem = await reply.json().catch(() => ({ detail: reply.statusText }));
      said.textContent = problem.detail;
      return;
    }
    const mean = reply.headers.get("X-Apprentice-Return-Mean");
    const shown = reply.headers.get("X-Apprentice-Context");
    await reply.blob();
    if (mine.signal.aborted) return;
    said.textContent = mean === null ? "" : "return " + mean + (shown ? ", shown #" + shown.replaceAll(",", " #") : "");
    video.src = url; // From the server's cache, with seeking.
  } catch (error) {
    if (!mine.signal.aborted) said.textContent = "the server does not answer: is it still running?";
    return;
  }
  await video.play().catch(() => undefined);
}

function offerDemonstrations() {
  // Those of the chosen task.
  const offered = document.getElementById("contexts");
  if (offered === null) return;
  offered.querySelectorAll("option[data-which]").forEach((option) => option.remove());
  const shown = player.elements.task.selectedOptions[0]?.dataset.shown ?? "";
  for (const number of shown.split(",").filter(Boolean)) {
    const option = new Option("ids:" + number);
    option.dataset.which = "yes";
    offered.append(option);
  }
}

if (live) {
  setInterval(() => renew(live, "/live?run=" + encodeURIComponent(live.dataset.run)), LIVE_MILLISECONDS);
  setInterval(() => {
    if (!curves.contains(document.activeElement)) renew(curves, curvesUrl());
    renew(imitation, "/imitation?run=" + encodeURIComponent(live.dataset.run));
  }, CURVES_MILLISECONDS);
  curves.addEventListener("change", () => renew(curves, curvesUrl()));
  offerDemonstrations();
  player.addEventListener("change", offerDemonstrations);
  player.addEventListener("submit", (event) => {
    event.preventDefault();
    const asked = new URLSearchParams(new FormData(player));
    for (const name of ["beside", "task", "context"]) if (!asked.get(name)) asked.delete(name);
    play("/evaluate?" + asked);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.play, a.watch");
    if (link === null) return;
    event.preventDefault();
    if (link.dataset.checkpoint) {
      player.elements.checkpoint.value = link.dataset.checkpoint;
      player.elements.beside.value = link.dataset.beside || "";
    }
    if (link.dataset.task) {
      player.elements.beside.value = link.dataset.beside;
      player.elements.task.value = link.dataset.task;
      player.elements.context.value = link.dataset.context;
      offerDemonstrations();
    }
    video.scrollIntoView({ block: "nearest" });
    play(link.getAttribute("href"));
  });
}
