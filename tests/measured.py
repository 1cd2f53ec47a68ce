"""What the services write and export, told by the services themselves: each is run, small, and looked at."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from filelock import FileLock
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import learner.evaluations
import learner.running
from apprentice.config import EnvironmentSettings, Experiment
from apprentice.environments import make_environment, shown_task
from apprentice.experiments import save_experiment
from apprentice.exporter import Exporter, metric_name
from apprentice.latents import LatentPoint, latent_metrics
from apprentice.metrics import read_metrics
from apprentice.ports import is_free
from apprentice.profiling import Span
from apprentice.rpc import EpisodeReport
from apprentice.runs import Catalogue, RunStatus
from apprentice.suite_tasks import FAMILIES
from evalserver.cache import MediaCache
from evalserver.telemetry import Telemetry
from evalserver.worker import Worker
from learner.demonstrated import Demonstrated, ExpertRecord
from learner.evaluating import EvaluationResult
from replay.locks import free_port
from replay.reader import FeedReader
from tests.actor.fakes import Stage
from tests.demonstrations.cases import trajectory
from tests.evalserver import serving
from tests.learner import test_conditioning, test_imitation, test_running
from tests.replay import cases
from tests.test_exporter import scrape

ROOT = Path(__file__).resolve().parents[1]
SPAN_OWNERS = {"learner": "learner", "actor": "actor", "apprentice": "actor", "replay": "replay"}
"""Folder and the service whose profile it charges; of the others only actors profile `apprentice`."""
START_SECONDS = 60.0
MEASURE_SECONDS = 100.0
"""Longest that one process waits for another that measures."""


class Measured(NamedTuple):
    """Names, as the services themselves tell them."""

    written: frozenset[str]
    """Every key that a learner writes to `metrics.jsonl`: trained, evaluated, restarted."""
    exported: Mapping[str, frozenset[str]]
    """All samples at each service's `/metrics`."""
    spans: Mapping[str, frozenset[str]]
    """The spans of each service: those its source charges, and what the evaluation worker reports."""


def measured_once(file: Path) -> Measured:
    """Return what is in `file`; the first of all processes that ask runs the services and writes it."""
    with FileLock(file.with_suffix(".lock"), timeout=MEASURE_SECONDS):
        if not file.exists():
            file.write_text(json.dumps(_measure()._asdict(), default=sorted))
    found = json.loads(file.read_text())
    return Measured(
        frozenset(found["written"]),
        {service: frozenset(names) for service, names in found["exported"].items()},
        {service: frozenset(names) for service, names in found["spans"].items()},
    )


def _measure() -> Measured:
    written, learners = _learner()
    samples, reported = _evaluation_server()
    exported = {
        "learner": learners,
        "actor": _actor()[0],
        "replay": _replay(),
        "evalserver": samples,
    }
    spans = {service: {"other"} for service in SPAN_OWNERS.values()}
    for folder, service in SPAN_OWNERS.items():
        for source in sorted((ROOT / folder).rglob("*.py")):
            spans[service] |= set(_charged_in(source))
    spans["evalserver"] = set(reported)
    return Measured(
        written, exported, {service: frozenset(names) for service, names in spans.items()}
    )


def _learner() -> tuple[frozenset[str], frozenset[str]]:
    told = [
        _learner_of(test_running.make(evaluation={"period_steps": 24}, **settings))
        for settings in (
            {},
            {"imitation": {"method": "dac"}, "sac": {"trust_region": "penalty"}},
            {"imitation": {"method": "bc"}},
        )
    ]
    inferring = _metrics_of_inference()
    written = frozenset[str]().union(inferring, *(one[0] for one in told))
    exported_names = frozenset(metric_name(name) for name in inferring)
    return written, exported_names.union(*(one[1] for one in told))


def _metrics_of_inference() -> frozenset[str]:
    """Return what a learner writes whose policy infers its task."""
    names: set[str] = set()
    for method in ("dac", "bc"):
        one = test_conditioning.filled(imitation={"method": method})
        one.update()
        names |= set(one.metrics())
    return frozenset(names)


def _learner_of(experiment: Experiment) -> tuple[frozenset[str], frozenset[str]]:
    rows = test_imitation.Rows()
    demonstrated = expert = None
    if experiment.imitation.method != "none":
        demonstrated = Demonstrated(rows, rows, None)
        expert = ExpertRecord(trajectory(0), (9.0,), 9.0, 1.0)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.running, "TICK_SECONDS", 0.0)
        patch.setattr(learner.running, "POLL_SECONDS", 0.001)
        patch.setattr(learner.evaluations, "Evaluator", _Evaluator)
        names: frozenset[str] = frozenset()
        for _ in range(2):  # the second one goes on with the run of the first
            run = test_running.Run(
                Path(folder),
                experiment,
                test_running.segments(0, 10),
                demonstrated=demonstrated,
                expert=expert,
            )
            run.learning.profile = profile = run.runner._profile
            run.runner._reader.metrics = _reader_that_met_a_spoiled_segment().metrics  # type: ignore[method-assign]
            run.runner._service = _Service()  # type: ignore[assignment]
            assert run.runner.run() == "finished"
            runner = run.runner
            exporter = Exporter(
                "learner", "127.0.0.1:0", runner.metrics, profile.snapshot, runner.problem
            )
            with closing(exporter):
                names |= {name for name, _ in scrape(exporter.port)}
        rows, num_torn = read_metrics(run.folder.metrics)
    assert num_torn == 0
    return frozenset().union(*(row.metrics for row in rows)), names


class _Evaluator(test_running.FakeEvaluator):
    """Answers with what the tasks of all families measure."""

    def poll(self) -> EvaluationResult | None:
        result = super().poll()
        return None if result is None else result._replace(metrics=_family_metrics())


@functools.cache
def _family_metrics() -> dict[str, float]:
    found: dict[str, float] = {}
    for family in FAMILIES:
        environment = make_environment(shown_task(family, EnvironmentSettings()), 0)
        environment.reset()
        environment.step(np.zeros(environment.spec.action_size, np.float32))
        found |= environment.episode_metrics()
    random = np.random.default_rng(0)
    points = [
        LatentPoint(n, f"task-{n // 2}", split, random.normal(size=3), np.ones(3))
        for n, split in enumerate(["train"] * 8 + ["validation"] * 4)
    ]
    told = {point.task_id: random.normal(size=2) for point in points}
    return {**found, **latent_metrics(points, told), "swapped_return": 1.0}


class _Service(test_running.FakeService):
    """Hears of one actor's spans and of an episode."""

    def drain_episodes(self) -> list[EpisodeReport]:
        return [EpisodeReport(0, 12.5, 1000, 1)]

    def spans(self) -> dict[int, Mapping[str, Span]]:
        return {0: _actor()[1]}


def _reader_that_met_a_spoiled_segment() -> FeedReader:
    reader = FeedReader("127.0.0.1:1", (cases.STATE,), cases.SETTINGS)
    data = reader._format.encode(cases.make_segment(actor=3))
    data[80:84] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    assert reader._decode([0, 0, 0, 0, 0, data]) is None
    return reader


@functools.cache
def _actor() -> tuple[frozenset[str], Mapping[str, Span]]:
    stage = Stage()
    stage.stop_after(3)
    assert stage.act() == "enough"
    metrics, told = stage.progress.metrics, stage.profile.snapshot
    with closing(Exporter("actor", "127.0.0.1:0", metrics, told, lambda: None)) as exporter:
        return frozenset(name for name, _ in scrape(exporter.port)), told()


def _replay() -> frozenset[str]:
    experiment = Experiment.model_validate({"name": "test", "task": "cartpole-swingup"})
    port, metrics_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        save_experiment(experiment, Path(folder) / "experiment.yaml")
        flags = {
            "--experiment": f"{folder}/experiment.yaml",
            "--port": str(port),
            "--checkpoints": f"{folder}/checkpoints",
            "--metrics": f"127.0.0.1:{metrics_port}",
        }
        command = [
            sys.executable,
            "-m",
            "replay",
            *(word for flag in flags.items() for word in flag),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while is_free("127.0.0.1", metrics_port):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "the replay server does not come up"
                time.sleep(0.1)
            return frozenset(name for name, _ in scrape(metrics_port))
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    for running in (process, *children):
        running.kill()
    process.communicate(timeout=10.0)


def _evaluation_server() -> tuple[frozenset[str], frozenset[str]]:
    """Return the samples' names, and the spans that a worker's report has."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = Catalogue(root).find_run(serving.make_run(root, "reach", "reacher-easy"))
        run.write_status(RunStatus.model_validate(_STATUS | {"run": run.path.name}))
        request = {
            "paths": [str(Catalogue(root).resolve(run.path.name).path)],
            "task": None,
            "context": None,
            "seed": 0,
            "episodes": 1,
            "deterministic": True,
            "max_steps": 3,
            "format": "json",
            "deadline_seconds": 60.0,
        }
        report, _ = Worker().answer(request)
        telemetry = Telemetry(Catalogue(root), MediaCache(1000))
        telemetry.charge(report["seconds"])
        telemetry.note("/evaluate", 200, 0.5)
        families = list(text_string_to_metric_families(telemetry.text().decode()))
    samples = [sample for family in _begun(families) for sample in family.samples]
    charged = (sample.labels["span"] for sample in samples if "span" in sample.labels)
    return frozenset(sample.name for sample in samples), frozenset(charged)


_STATUS = {
    "experiment": "reach",
    "task": "reacher-easy",
    "state": "training",
    "max_steps": 100,
    "evaluation_returns": (3.0, 2.0),
    "best_return": 3.0,
    "training_return": 1.0,
    "replay_ratio": 0.5,
    "steps_per_second": 10.0,
    "updates_per_second": 5.0,
    "policy_lag_steps": 20.0,
}


def _begun(families: Sequence[Metric]) -> Iterator[Metric]:
    """Leave out the times at which the client began to count something else."""
    counted = {f"{family.name}_created" for family in families}
    return (family for family in families if family.name not in counted)


def _charged_in(file: Path) -> Iterator[str]:
    """Find the names in `….lap(NAME, …)`; one that is not written out there would go undocumented."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "lap"
        ):
            name = node.args[0]
            for choice in (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,):
                where = f"{file}:{node.lineno}"
                assert isinstance(choice, ast.Constant), f"{where}: expected a span's name"
                assert isinstance(choice.value, str), f"{where}: expected a span's name"
                yield choice.value
