"""Results: interquartile means, intervals, the file, the table and the plot."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from apprentice.config import Experiment
from apprentice.config_imitation import ImitationSettings
from apprentice.experiments import expand, load_resolved, save_experiment
from apprentice.results import (
    LearningRow,
    ResultsError,
    bootstrap_interval,
    difference_interval,
    differences,
    interquartile_mean,
    plot,
    read_results,
    summarise,
    table,
    write_results,
)
from apprentice.run_status import RunStatus
from apprentice.runs import RunFolder
from cli.main import main
from cli.report import BEGIN, END, command_of_run
from tests.evalserver.serving import make_run


def row(seed: int, value: float, method: str = "dac", task: str = "reacher-easy") -> LearningRow:
    return LearningRow(
        task, method, 10, 50, seed, 200_000, 900.0 * value, 900.0, 0.0, value, "apprentice grid x", "abc"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 100.0], 2.5),
        ([5.0], 5.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 50.0], 3.5),
        # Of three, the middle half is 1/4 of a third, the middle one, 1/4 of a third: weights 1/6, 2/3, 1/6.
        ([0.0, 3.0, 12.0], 4.0),
    ],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(
    values: list[float], expected: float
) -> None:
    assert float(interquartile_mean(np.array(values))) == pytest.approx(expected)


def test_an_interval_holds_the_mean_and_narrows_with_seeds() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(1.0, 0.1, 5), random.normal(1.0, 0.1, 50)
    low, high = bootstrap_interval(many.tolist())
    assert low < 1.0 < high
    wide = bootstrap_interval(few.tolist())
    assert wide[1] - wide[0] > high - low
    assert bootstrap_interval(few.tolist()) == wide
    assert bootstrap_interval([0.7]) == (0.7, 0.7)


def test_a_difference_is_taken_within_tasks() -> None:
    ours = {"a": [0.9, 0.9, 0.9], "b": [0.5, 0.5, 0.5]}
    others = {"a": [0.8, 0.8, 0.8], "b": [0.1, 0.1, 0.1]}
    middle, low, high = difference_interval(ours, others)
    assert (middle, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_file_goes_there_and_back_and_a_row_is_replaced_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    assert read_results(path) == ()
    rows = [row(1, 0.5), row(0, 0.75, method="bc")]
    write_results(path, rows)
    assert set(read_results(path)) == set(rows)
    assert (
        path.read_text()
        .splitlines()[0]
        .startswith("task,method,demonstrations,rows,seed,frames,return,")
    )
    assert row(1, 0.9).key == rows[0].key


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ResultsError, match="expected the columns task, method"):
        read_results(path)
    write_results(path, [row(0, 0.5)])
    path.write_text(path.read_text().replace(",10,", ",ten,"))
    with pytest.raises(ResultsError, match="line 2"):
        read_results(path)


def test_differences_are_taken_on_the_same_task_and_budget() -> None:
    rows = [row(seed, value) for seed, value in ((0, 0.5), (1, 1.0))]
    rows += [row(seed, value, "bc") for seed, value in ((0, 0.25), (1, 0.25))]
    rows.append(row(0, 0.9, "bc")._replace(frames=7))  # another budget, with nothing to compare
    text = differences(rows, "bc")
    assert text.splitlines()[2:] == ["| reacher-easy | dac | +0.50 | [+0.25, +0.75] |"]
    with pytest.raises(ResultsError, match=r"expected one of \['bc', 'dac'\], found 'gail'"):
        differences(rows, "gail")


def test_the_table_shows_every_seed() -> None:
    text = table([row(0, 0.5), row(1, 1.0), row(0, 0.25, "bc")])
    assert (
        "| reacher-easy | dac | 10 × 50 | 200,000 | 900 | 0.75 | 0.75 [0.50, 1.00] | 0.50, 1.00 |"
        in text
    )
    assert "| reacher-easy | bc | 10 × 50 | 200,000 | 900 | 0.25 |" in text
    summary = summarise([row(0, 0.5), row(1, 1.0)])["reacher-easy", "dac", 10, 50, 200_000]
    assert summary.mean == 0.75


def test_the_plot_has_a_dot_for_every_seed() -> None:
    drawn = ElementTree.fromstring(plot([row(0, 0.5), row(1, 1.0), row(0, 0.25, "bc")]))  # noqa: S314
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}circle")) == 3
    labels = [text.text for text in drawn.findall(f"{space}text")]
    assert "reacher-easy, dac, 10 × 50, 200k" in labels


def test_plain_returns_are_not_taken_for_normalised_ones() -> None:
    plain = row(0, 0.5, task="hopper-hop")._replace(random_return=None, normalised=None)
    assert "| 450.00 (plain return) | 450.00 | 450.00 |" in table([plain])
    text = plot([plain, row(0, 0.5)])
    assert "hopper-hop" not in text
    assert "1 is the expert" in text
    alone = plot([plain])
    assert "hopper-hop" in alone
    assert "1 is the expert" not in alone


def test_the_readmes_table_is_that_of_the_committed_rows() -> None:
    root = Path(__file__).resolve().parents[1]
    rows = read_results(root / "benchmarks" / "results" / "imitation.csv")
    assert rows
    assert table(rows) in (root / "README.md").read_text()


def test_a_table_goes_between_the_marks_of_a_file(tmp_path: Path, capsys: Any) -> None:
    results, page = tmp_path / "results.csv", tmp_path / "page.md"
    write_results(results, [row(0, 0.5)])
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert main(["report", "--csv", str(results), "--into", str(page)]) == 0
        assert page.read_text() == f"before\n{BEGIN}\n\n{table([row(0, 0.5)])}\n{END}\nafter\n"
    page.write_text("nothing")
    assert main(["report", "--csv", str(results), "--into", str(page)]) == 78
    assert "expected" in capsys.readouterr().err


def test_only_finished_runs_are_measured(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / make_run(tmp_path, "reach", "reacher-easy", action_repeat=10)
    results = tmp_path / "results.csv"
    assert main(["report", str(run), "--csv", str(results)]) == 78
    assert "expected a run that has finished, found no status" in capsys.readouterr().err
    status = {"run": run.name, "experiment": "reach", "task": "reacher-easy", "state": "finished"}
    RunFolder(run).write_status(RunStatus.model_validate({**status, "max_steps": 100}))
    assert main(["report", str(run), "--csv", str(results), "--episodes", "2"]) == 0
    (found,) = read_results(results)
    assert (found.task, found.method, found.demonstrations) == ("reacher-easy", "sac", 0)
    label = ["--label", "sac.gamma", "--episodes", "2"]
    assert main(["report", str(run), "--csv", str(results), *label]) == 0
    assert {one.method for one in read_results(results)} == {"sac", "sac:0.99"}
    assert main(["report", str(run), "--csv", str(results), "--label", "sac.gama"]) == 78
    both = ["--label", "sac.gamma", "--label", "seed", "--episodes", "2"]
    assert main(["report", str(run), "--csv", str(results), *both]) == 0
    assert "sac:0.99:0" in {one.method for one in read_results(results)}


def test_a_runs_own_evaluations_are_its_learning_curve(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / make_run(tmp_path, "reach", "reacher-easy", action_repeat=10)
    status = {"run": run.name, "experiment": "reach", "task": "reacher-easy", "state": "finished"}
    RunFolder(run).write_status(RunStatus.model_validate({**status, "max_steps": 100}))
    curve, mean = tmp_path / "curve.csv", tmp_path / "mean.csv"
    words = ["report", str(run), "--csv", str(curve), "--measure", "evaluations"]
    assert main(words) == 78
    assert "expected evaluations that the run made, found none" in capsys.readouterr().err
    for steps, returns in ((50, [1.0, 3.0]), (100, [10.0, 20.0])):
        text = json.dumps({"steps": steps, "returns": returns})
        (run / "evaluations" / f"step-{steps:012}.json").write_text(text)
    assert main(words) == 0
    found = [(row.frames, row.environment_return) for row in read_results(curve)]
    assert found == [(500, 2.0), (1000, 15.0)]
    assert main(["report", str(run), "--csv", str(mean), "--measure", "curve"]) == 0
    assert [row.environment_return for row in read_results(mean)] == [8.5]
    file = run / "experiment.yaml"
    cloning = load_resolved(file).model_copy(update={"imitation": ImitationSettings(method="bc")})
    save_experiment(cloning, file)
    assert main(words) == 78
    assert "expected a run whose policy acts while it learns" in capsys.readouterr().err


def test_a_row_of_other_settings_is_not_replaced(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / make_run(tmp_path, "reach", "reacher-easy", action_repeat=10)
    status = {"run": run.name, "experiment": "reach", "task": "reacher-easy", "state": "finished"}
    RunFolder(run).write_status(RunStatus.model_validate({**status, "max_steps": 100}))
    results = tmp_path / "results.csv"
    words = ["report", str(run), "--csv", str(results), "--episodes", "2"]
    assert main(words) == 0
    (found,) = read_results(results)
    write_results(results, [found._replace(command="apprentice grid other")])
    assert main(words) == 78
    assert "expected a run that `apprentice grid other` makes" in capsys.readouterr().err


def test_a_rows_command_has_all_that_its_experiments_file_does_not_say() -> None:
    variant = expand("main-finger-spin")[1]
    assert command_of_run(variant) == "apprentice grid main-finger-spin"
    tree = variant.model_dump()
    tree["imitation"]["demonstration_share"] = 0.0
    changed = Experiment.model_validate(tree)
    assert command_of_run(changed) == (
        "apprentice up main-finger-spin --variant 1 --set imitation.demonstration_share=0.0"
    )
    (recovered,) = expand(
        "recovered-cartpole-swingup", ["imitation.reward.recovered_checkpoint=a b"]
    )
    assert command_of_run(recovered) == (
        "apprentice up recovered-cartpole-swingup --set 'imitation.reward.recovered_checkpoint=a b'"
    )
    study = expand("experiments/studies/dropout.yaml")[0]
    for overrides in (
        ["imitation.method=sqil", "imitation.demonstration_share=0.1"],
        ["imitation.method=gail", "imitation.reward.form=logit"],
        ["imitation.discriminator.preset=tanh_2x100", "imitation.discriminator.dropout=0.5"],
        ["imitation.method=fairl", "imitation.discriminator.preset=tanh_2x100"],
    ):
        (experiment,) = expand("dac", overrides)
        words = shlex.split(command_of_run(experiment))
        assert words[:4] == ["apprentice", "up", "dac", "--set"]
        assert expand("dac", words[4::2]) == (experiment,)
    assert command_of_run(study) == "apprentice grid experiments/studies/dropout.yaml"
