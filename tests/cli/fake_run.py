"""Packages `replay`, `learner`, `actor` and `evalserver` that behave like services and do nothing.

The fake learner writes the status that a real one would, and obeys a file `orders` in its run
folder: "finish", "diverge" or "misconfigured"; it also leaves a checkpoint behind.
"""

from __future__ import annotations

from pathlib import Path

_COMMON = """
import argparse, signal, sys, time
parser = argparse.ArgumentParser()
for flag in {flags}:
    parser.add_argument(flag, required=True)
flags = parser.parse_args()
leaving = []
signal.signal(signal.SIGTERM, lambda *_: leaving.append(1))
print('ready', flush=True)
while not leaving:
    time.sleep(0.02)
print('left in order', flush=True)
"""

_LEARNER = """
import argparse, signal, sys, time
from pathlib import Path
from apprentice.run_status import RunStatus
parser = argparse.ArgumentParser()
for flag in ('--experiment', '--run-directory', '--replay', '--host', '--port'):
    parser.add_argument(flag, required=True)
flags = parser.parse_args()
folder = Path(flags.run_directory)
leaving = []
signal.signal(signal.SIGTERM, lambda *_: leaving.append(1))
(folder / 'checkpoints' / 'step-000000000042').mkdir(exist_ok=True)

def report(state):
    status = RunStatus(
        run=folder.name, experiment='tiny', task='reacher-easy', state=state, steps=42,
        max_steps=100, evaluation_returns=(912.0,), best_return=912.0,
    )
    (folder / 'status.json').write_text(status.model_dump_json())

report('training')
print('ready', flush=True)
while not leaving:
    orders = folder / 'orders'
    order = orders.read_text() if orders.exists() else ''
    if order == 'finish':
        report('finished')
        sys.exit(0)
    if order == 'diverge':
        print('losses are not finite', flush=True)
        report('failed')
        sys.exit(71)
    if order == 'misconfigured':
        print('sac.gama: did you mean sac.gamma?', flush=True)
        sys.exit(78)
    time.sleep(0.02)
report('stopped')
print('left in order', flush=True)
"""

_FLAGS = {
    "replay": ("--experiment", "--port", "--checkpoints", "--profile"),
    "actor": ("--learner", "--replay"),
    "evalserver": ("--runs", "--host", "--port"),
}


def write_services(folder: Path) -> None:
    """Write the four packages into a folder that is to stand first on PYTHONPATH."""
    sources = {name: _COMMON.format(flags=flags) for name, flags in _FLAGS.items()}
    for name, source in (sources | {"learner": _LEARNER}).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "__main__.py").write_text(source)
