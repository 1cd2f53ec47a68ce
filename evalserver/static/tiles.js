// Rollouts of a family's test tasks, which are links without this: each plays in its place when it is
// clicked. They are asked for one after another, so that others find a free worker.
"use strict";

const MOST_TRIES = 5;
const waiting = [];
let working = false;

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}

async function fill(link) {
  const url = link.getAttribute("href");
  for (let tries = 1; ; tries += 1) {
    link.textContent = "drawing …";
    try {
      const reply = await fetch(url);
      if (reply.status === 503 && tries < MOST_TRIES) {
        link.textContent = "waiting …";
        await pause(Number(reply.headers.get("Retry-After")) || 2);
        continue;
      }
      if (!reply.ok) {
        const problem = await reply.json().catch(() => ({ detail: reply.statusText }));
        link.textContent = problem.detail;
        return;
      }
      await reply.blob();
    } catch (error) {
      link.textContent = "the server does not answer";
      return;
    }
    const video = document.createElement("video");
    Object.assign(video, { className: "tile", src: url, loop: true, muted: true, autoplay: true, controls: true });
    video.playsInline = true;
    video.setAttribute("aria-label", link.getAttribute("aria-label"));
    link.replaceWith(video);
    return;
  }
}

async function work() {
  if (working) return;
  working = true;
  while (waiting.length) await fill(waiting.shift());
  working = false;
}

function ask(link) {
  if (waiting.includes(link) || link.dataset.asked) return;
  link.dataset.asked = "yes";
  link.textContent = "waiting …";
  waiting.push(link);
  work();
}

const all = document.getElementById("play-all");
if (all) {
  all.hidden = false;
  all.addEventListener("click", () => document.querySelectorAll("a.tile").forEach(ask));
}
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.tile");
  if (link === null) return;
  event.preventDefault();
  ask(link);
});
