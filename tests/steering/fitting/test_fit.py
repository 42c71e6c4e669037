"""The whole command on tiny random models: a random model separates little, so the tests look at the machinery."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.progress import Progress
from sklearn.feature_extraction.text import TfidfVectorizer
from typer.testing import CliRunner, Result

from server.cli.fit import app
from steering.bundle import TENSORS, load_guard
from steering.data import questions
from steering.data.questions import Question
from steering.errors import FitError
from steering.files import write_whole
from steering.fitting.compared import compare
from steering.fitting.dataset import Dataset
from steering.fitting.enough import PARTS
from steering.fitting.figures import by_category
from steering.fitting.fit import Fitted, fit, stages_of
from steering.fitting.items import Item, read_labels, read_prompts
from steering.fitting.offline import score_batch
from steering.fitting.parts import split
from steering.fitting.steps import Settings
from steering.fitting.sweep import EpsPoint, choose_eps
from steering.manifest import MANIFEST
from steering.readers import LastToken
from tests.end_to_end.forked import forking
from tests.tiny import TinyModels, picture
from tests.undrawn import undrawn

REFUSAL = "I can't help with that."
OWN = {"llama": ("--answers", "--answer-tokens", "16")}  # models that answer the rows themselves as well
HEAD_OF = {"chameleon": ("--head", "nullspace"), "llama": ("--head", "sparing")}
DRAWN = "llava_onevision"  # the family whose report has its figures
OWN_WORDS = 16  # a random model's say nothing, and each takes 128 steps
THINGS = ["circle", "square", "picture", "sign", "image", "colour"]


def write_data(folder: Path, count: int = 60, *, pictures: bool = True) -> tuple[Path, Path]:
    """Pairs, some with pictures of their own, and harmless prompts, of which the first share one of these."""
    folder.mkdir()
    pairs, benign = [], []
    for n in range(count):
        thing = THINGS[n % len(THINGS)]
        row: dict[str, Any] = {"id": f"p{n}", "category": "ab"[n // 2 % 2], "split": ["train", "validation"][n % 2]}
        row |= {"toxic": f"Break the {thing} number {n}!", "safe": f"Describe the {thing} number {n}, please."}
        if pictures and n % 3 == 0:
            picture(n).save(folder / f"{n}.png")
            row["image"] = f"{n}.png"
        pairs.append(row)
        split = ["train", "validation"][n // 2 % 2]
        shared = {"image": "0.png"} if pictures and n < 3 else {}
        benign.append({"id": f"b{n}", "text": f"Hello {n}, what is a {thing}?", "split": split, **shared})
    for name, rows in (("pairs", pairs), ("benign", benign)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl", folder / "benign.jsonl"


def write_responses(file: Path, count: int = 72) -> Path:
    """Labelled answers, one in three harmful, half of them to calibrate on."""
    rows = [
        {
            "prompt": f"What is a {THINGS[n % len(THINGS)]} of kind {n}?",
            "response": f"It is the {THINGS[n % len(THINGS)]}, number {n} of a kind. " * (1 + n % 3),
            "label": ["harmful", "harmless", "refusal"][n % 3],
            "split": ["train", "calibration"][n // 3 % 2],
        }
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def arguments(model: Path, data: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    files = ["--pairs", str(data[0]), "--benign", str(data[1]), "--model", str(model), "--out", str(out)]
    settings = ["--dtype", "float32", "--device", "cpu", "--batch", "8", "--own-words", str(OWN_WORDS)]
    return ["fit", *files, *settings, "--refusal", REFUSAL, *more]


def unplotted(arguments: list[str]) -> Result:
    """Run the command, but draw no figures."""
    with undrawn():
        return CliRunner().invoke(app, arguments)


@dataclass(frozen=True)
class Whole:
    """What the whole command has read and written."""

    model: Path
    data: tuple[Path, Path]
    answers: tuple[str, ...]
    out: Path
    hashed: list[str]  # names of the image files whose bytes were hashed

    def again(self, out: Path, data: tuple[Path, Path] | None = None) -> list[str]:
        """The same command, for another folder of its own."""
        return arguments(self.model, data or self.data, out, *self.answers)


@contextmanager
def counted_hashes(names: list[str]) -> Iterator[None]:
    """Add the names of image files as their bytes are hashed."""
    real = questions.file_digest

    def counting(path: Path) -> str:
        names.append(path.name)
        return real(path)

    with patch.object(questions, "file_digest", counting):
        yield


@pytest.fixture(scope="module")
def whole(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The whole command on a family's tiny model, run once."""

    @cache
    def made(family: str) -> Whole:
        folder, model = tmp_path_factory.mktemp(family), tiny_models.folder(family)
        data = write_data(folder / "data", pictures=tiny_models.backbone(family).inputs.sees)
        answers = "--responses", str(write_responses(folder / "said.jsonl")), *OWN.get(family, ())
        done = Whole(model, data, (*answers, *HEAD_OF.get(family, ())), folder / "guard", [])
        with nullcontext() if family == DRAWN else undrawn(), counted_hashes(done.hashed):
            result = CliRunner().invoke(app, done.again(done.out))
        assert result.exit_code == 0, result.output
        shown = [(int(number), int(total)) for number, total in re.findall(r"stage (\d+) of (\d+): ", result.output)]
        assert shown == sorted(shown)
        assert shown[-1] == (17 + 2 * (family in OWN) + (family in HEAD_OF),) * 2
        return done

    return made


@pytest.mark.parametrize("family", ["llava_onevision", "chameleon", "llama"])
def test_the_whole_command(tiny_models: TinyModels, family: str, whole: Callable[[str], Whole]) -> None:
    done, backbone = whole(family), tiny_models.backbone(family)
    data, out = done.data, done.out
    own = family in OWN
    guard = load_guard(out, backbone.info)
    manifest = guard.manifest
    assert manifest.format_version == 7
    assert manifest.category_names == ["a", "b"]
    assert guard.categories is not None
    assert guard.width == 4
    assert manifest.answers is not None
    assert manifest.answers.thresholds[-1].target_fpr == 0.05
    # Fresh ones: of the file 12 and 24, of the rows those of 30 pairs and of 30 harmless prompts.
    figures = manifest.answers.figures
    assert [figures["harmful"], figures["harmless"]] == ([12 + 30, 24 + 60] if own else [12, 24])
    assert [row.layer for row in manifest.layers] == list(range(backbone.info.num_layers + 1))
    assert manifest.layer == max(manifest.layers, key=lambda row: row.sas).layer
    assert {row.target_fpr for row in manifest.thresholds} <= {0.05, 0.01}
    assert manifest.refusal == REFUSAL
    assert guard.fitted_rows is not None
    assert {item.questions[0].fingerprint for item in read_prompts(data[1])} <= guard.fitted_rows
    assert Question("never seen").fingerprint not in guard.fitted_rows
    folder = out.with_name("guard.report")
    report = json.loads((folder / "report.json").read_text())
    assert any("cannot promise an FPR of 0.001" in line for line in report["warnings"])
    page = (folder / "report.html").read_text()
    assert len(list(folder.glob("*.png"))) == 9
    assert page.count("data:image/png;base64,") == (9 if family == DRAWN else 0)
    assert report["answers"]["figures"] == manifest.answers.figures
    kinds = {row["surrounding"]: row for row in report["surroundings"]}
    assert {"alone", "suffix", "earlier turn", "answer begun", "retry"} <= {*kinds}
    assert kinds["alone"]["toxic"] == report["sizes"]["calibration"]["toxic"]
    assert "src='http" not in page
    assert 'src="http' not in page
    inspected = CliRunner().invoke(app, ["inspect", str(out)])
    assert inspected.exit_code == 0
    assert REFUSAL in inspected.output
    assert manifest.categories is not None
    assert f"macro AUROC {manifest.categories.figures['macro_auroc']:.4f}" in inspected.output
    assert "Categories told apart" in page


def test_pairs_with_pictures_for_a_model_that_reads_none(tiny_models: TinyModels, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "guard"
    result = CliRunner().invoke(app, arguments(tiny_models.folder("llama"), data, out))
    assert result.exit_code == 2
    assert "autosteer: 23 rows show images, and the model reads text only:" in " ".join(result.output.split())
    assert not (out / MANIFEST).exists()


@pytest.mark.parametrize("family", ["llava_onevision", "llama"])
def test_a_guard_reads_scores_as_it_was_fitted(
    tiny_models: TinyModels, tmp_path: Path, family: str, whole: Callable[[str], Whole]
) -> None:
    done = whole(family)
    command = ["score", "--model", str(done.model), "--guard", str(done.out), "--dtype", "float32", str(done.data[1])]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "scores.jsonl")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    guard = load_guard(done.out, tiny_models.backbone(family).info)
    assert guard.manifest.categories is not None
    assert [row["id"] for row in rows] == [f"b{n}" for n in range(60)]
    assert all(row["flagged"] == (row["score"] >= guard.manifest.threshold) for row in rows)
    for row in rows:
        thresholds = {each.name: each.threshold for each in guard.manifest.categories.categories}
        assert row["category_scores"].keys() == thresholds.keys() == {"a", "b"}
        reached = {name: score >= thresholds[name] for name, score in row["category_scores"].items()}
        assert row["categories"] == {name: row["flagged"] and reached[name] for name in reached}
    kept = guard.calibration["safe_scores"]
    found = [min(abs(float(score) - row["score"]) for row in rows) for score in kept]
    assert sum(distance < 1e-4 for distance in found) >= 10  # the harmless calibration prompts are among them


@pytest.mark.parametrize(
    "more", [("--prober", "linear", "--rank", "4", "--layer", "2"), ("--select", "auroc", "--refusal", "No.")]
)
def test_the_options(tiny_models: TinyModels, tmp_path: Path, more: tuple[str, ...]) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "guard"
    last = "--reader", "last"
    result = unplotted(arguments(tiny_models.folder("llava_onevision"), data, out, *last, *more))
    assert result.exit_code == 0, result.output
    manifest = load_guard(out, tiny_models.backbone("llava_onevision").info).manifest
    assert manifest.prober_hidden == (0 if "linear" in more else 64)
    assert manifest.head_rank == (4 if "--rank" in more else None)
    assert manifest.layer == 2 or "--layer" not in more


def test_several_layers_are_read_side_by_side(tiny_models: TinyModels, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "guard"
    model, backbone = tiny_models.folder("llava_onevision"), tiny_models.backbone("llava_onevision")
    result = unplotted(arguments(model, data, out, "--layers", "3,1", "--reader", "last"))
    assert result.exit_code == 0, result.output
    guard = load_guard(out, backbone.info)
    assert (guard.layers, [row.layer for row in guard.manifest.layers]) == ([3, 1], [3, 1])
    assert guard.layer == max(guard.manifest.layers, key=lambda row: row.sas).layer
    assert isinstance(guard.reader, LastToken)
    assert guard.reader.prober.first.in_features == 2 * backbone.info.hidden_size
    questions = [item.questions[0] for item in read_prompts(data[1])]
    scores = score_batch(backbone, guard, questions[:8])
    kept = guard.calibration["safe_scores"]
    assert sum(float((kept - score).abs().min()) < 1e-4 for score in scores) >= 2
    assert "layers 3 and 1 side by side" in (tmp_path / "guard.report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--target-fpr", "0.001"), "999 can"),
        (("--target-fpr", "0.02"), "not one of"),
        (("--layer", "9"), "layer 9 is not one of 0..4"),
        (("--select", "best"), "--select best"),
        (("--prober", "deep"), "--prober deep"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--layers", "1,2,1"), "--layers 1,2,1"),
        (("--layers", "1,x"), "--layers 1,x"),
        (("--layers", "1,2", "--layer", "1"), "no --layer"),
        (("--layers", "1,7"), "layer 7 is not one of 0..4"),
        (("--judge", "anyone"), "--judge anyone is not one of phrases, demo"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    tiny_models: TinyModels, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    data = write_data(tmp_path / "data")
    result = CliRunner().invoke(app, arguments(tiny_models.folder("llava_onevision"), data, tmp_path / "guard", *more))
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "Traceback" not in result.output


def test_too_few_answers_are_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    responses = "--responses", str(write_responses(tmp_path / "said.jsonl", 18))
    result = CliRunner().invoke(app, arguments(tmp_path / "no model", data, tmp_path / "guard", *responses))
    assert result.exit_code == 2
    assert "3 harmful answers to fit on, and 8 are needed" in " ".join(result.output.split())
    assert "6 harmless answers to calibrate on, and 19 are needed" in " ".join(result.output.split())
    assert "no model" not in result.output.replace(str(tmp_path), "")


def test_bad_rows_are_listed_before_the_model_runs(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "3.png").unlink()
    result = CliRunner().invoke(app, arguments(tmp_path / "no model", data, tmp_path / "guard"))
    assert result.exit_code == 2
    assert "pairs.jsonl:4 (p3): no image" in result.output
    assert "no model" not in result.output.replace(str(tmp_path), "")


# killed and started again ------------------------------------------------------------------------------------------


STAGES = (
    *("lengths", "data", "states", "layers", "prober"),
    *("words", "conversations", "probes", "categories", "read"),
    *("refusals", "head", "eps"),
)


class CutError(Exception):
    """Stands for a kill."""


def test_cut_off_at_every_stage_and_started_again_gives_the_same_bundle(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering.fitting.collect.CHUNK", 64)  # states are several files
    placed = [
        replace(item, category="ab"[n // 3 % 2], split=PARTS[n % 3]) for n, item in enumerate(items(60, shuffled=False))
    ]
    backbone, parts = tiny_models.backbone("llava_onevision"), split(placed)
    settings = Settings(refusals=(REFUSAL,), head_prompts=10, sweep_prompts=8, own_words=OWN_WORDS)

    def run(name: str) -> None:
        with Progress(disable=True) as progress:
            fit([backbone], parts, settings, tmp_path / name, tmp_path / f"{name}.work", progress)

    run("whole")
    assert len({*(tmp_path / "whole.work").glob("*/done.json")}) == len(STAGES)
    assert stages_of(settings, None, categories=True) == len(STAGES)
    for stage in STAGES:
        for begun in (True, False):  # with half of its files there, and with all but the note that it is done
            cut = patch("steering.fitting.stages.write_whole", _cutting(stage, begun=begun))
            with cut, pytest.raises(CutError):
                run("cut")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut.work").glob("*/done.json")}
    assert len(before) == len(STAGES) - 1
    run("cut")
    for file in (MANIFEST, TENSORS):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def _cutting(stage: str, *, begun: bool) -> Callable[[Path, bytes], None]:
    """A way to write files that fails in one stage: at its second file, or at the note that it is done."""
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        if path.parent.name.startswith(f"{stage}-") or path.parents[1].name.startswith(f"{stage}-"):
            written.append(path)
            if path.name == "done.json" or (begun and len(written) == 2):
                raise CutError
        write_whole(path, data)

    return write


@pytest.mark.parametrize("stages", [("states", "read", "eps"), pytest.param(STAGES, marks=pytest.mark.slow)])
def test_killed_in_a_stage_and_started_again_gives_the_same_bundle(
    stages: tuple[str, ...], tmp_path: Path, whole: Callable[[str], Whole]
) -> None:
    """SIGKILL to a real process, in one stage after the other; what had finished is not touched again."""
    done_whole = whole("llava_onevision")
    out, work = tmp_path / "killed", tmp_path / "killed.work"
    given = done_whole.again(out)
    told = tmp_path / "told.jsonl"
    process = forking().Process(
        target=exec, args=(_KILLED, {"stages": stages, "work": work, "given": given, "told": told})
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    finished: dict[str, int] = {}
    for stage, line in zip(stages, told.read_text().splitlines(), strict=True):
        ended_by, now = json.loads(line)
        assert ended_by == signal.SIGKILL
        assert len(now) == STAGES.index(stage)
        assert finished.items() <= now.items()
        finished = now
    assert len(finished) == len(STAGES) - 1
    assert unplotted(given).exit_code == 0
    assert all(Path(path).stat().st_mtime_ns == time for path, time in finished.items())
    for file in (MANIFEST, TENSORS):
        assert (out / file).read_bytes() == (done_whole.out / file).read_bytes()


# For each stage a process that kills itself, hard, when the files are written but the stage is not finished. It is
# forked from one that has imported all, which tells what ended it, and when stages have finished.
_KILLED = """
import json, os, signal
from server.cli.fit import app
import sklearn.linear_model, steering.fitting.fit
from steering.fitting.stages import Stages
run = Stages.run

def killed_in(stage):
    def killed(self, name, inputs, work):
        def killing(folder):
            work(folder)
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, name, inputs, killing if name == stage else work)
    Stages.run = killed
    app(given)

with told.open("w") as file:
    for stage in stages:
        child = os.fork()
        if not child:
            killed_in(stage)
        ended_by = os.waitpid(child, 0)[1]
        finished = {str(path): path.stat().st_mtime_ns for path in work.glob("*/done.json")}
        print(json.dumps([ended_by, finished]), file=file, flush=True)
"""


# data that carries nothing, or little ------------------------------------------------------------------------------


def items(count: int, *, shuffled: bool) -> list[Item]:
    """Pairs whose sides differ by a word; shuffled, either side may hold it."""
    generator = torch.Generator().manual_seed(0)
    swapped = (torch.rand(count, generator=generator) < 0.5).tolist()
    found = []
    for n in range(count):
        sides = Question(f"{n} Break the circle {n}"), Question(f"{n} Describe the circle {n}")
        toxic, safe = reversed(sides) if shuffled and swapped[n] else sides
        found.append(Item(f"i{n}", toxic, safe))
    return found


def fitted(tiny_models: TinyModels, tmp_path: Path, data: list[Item], require_tpr: float = 0.0) -> Fitted:
    backbone = tiny_models.backbone("llava_onevision")
    with Progress(disable=True) as progress:
        settings = Settings(
            refusals=(REFUSAL,), head_prompts=20, sweep_prompts=8, own_words=OWN_WORDS, require_tpr=require_tpr
        )
        return fit([backbone], split(data), settings, tmp_path / "out", tmp_path / "work", progress)


def test_shuffled_labels_are_called_no_signal(tiny_models: TinyModels, tmp_path: Path) -> None:
    result = fitted(tiny_models, tmp_path, items(300, shuffled=True))
    assert result.guard.manifest.validation["auroc"] == pytest.approx(0.5, abs=0.1)
    assert any(line.startswith("There is no signal") for line in result.report["warnings"])
    assert result.report["words_auroc"] == pytest.approx(0.5, abs=0.1)
    assert result.report["headline"].startswith("DO NOT SERVE THIS GUARD")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(FitError, match=r"--require-tpr asks for 90\.0%: no bundle is written"):
        fitted(tiny_models, tmp_path, items(300, shuffled=True), require_tpr=0.9)
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_no_number_is_one_line_that_names_prompt_and_layer(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, groups: Any, layers: Any) -> torch.Tensor:
        asked = [question for group in groups for question in group]
        states = torch.randn(len(asked), len(layers), 4)
        states[[question.text.startswith("3 ") for question in asked], 2] = torch.inf
        return states

    monkeypatch.setattr("steering.fitting.collect.read_states", broken)
    with pytest.raises(FitError, match=r"\(i3, toxic\): its state at layer 2 holds values that are no numbers"):
        fitted(tiny_models, tmp_path, items(120, shuffled=False))


def test_every_image_file_is_hashed_once(whole: Callable[[str], Whole]) -> None:
    """Splitting, looking for leaks and the hash of the data all ask for it; pairs and harmless rows share a picture."""
    done = whole("llava_onevision")
    assert sorted(done.hashed) == sorted(file.name for file in done.data[0].parent.glob("*.png"))


def test_a_score_that_is_no_number_counts_as_flagged() -> None:
    sides = [Item(f"i{n}", Question(f"t{n}"), Question(f"s{n}")) for n in range(2)]
    dataset = Dataset.of({"calibration": sides})
    scores = torch.tensor([0.9, 0.1, 0.2, torch.nan])
    assert by_category(dataset, scores, 0.5)["(none)"]["safe_flagged"] == 0.5


@pytest.fixture
def bags(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the bags of words that are fitted."""
    sizes: list[int] = []
    real = TfidfVectorizer.fit_transform

    def counting(vectorizer: Any, texts: Any, *more: Any) -> Any:
        sizes.append(len(texts))
        return real(vectorizer, texts, *more)

    monkeypatch.setattr(TfidfVectorizer, "fit_transform", counting)
    return sizes


def test_words_that_give_the_label_away_are_reported_and_rows_without_room_left_out(
    tiny_models: TinyModels, tmp_path: Path, bags: list[int]
) -> None:
    long = Item("long", Question("Break it." + " a" * 5000), Question("Describe it."), where="pairs.jsonl:121")
    result = fitted(tiny_models, tmp_path, [*items(120, shuffled=False), long])
    assert len(result.dataset.items) == 120
    assert len(bags) == 1, "one bag serves all figures"
    (told,) = [line for line in result.report["warnings"] if "left out" in line]
    assert re.fullmatch(r"1 rows pass the model's context of \d+ tokens and are left out: pairs.jsonl:121", told)
    assert result.guard.manifest.validation["auroc"] > 0.95
    assert not any(line.startswith("There is no signal") for line in result.report["warnings"])
    assert any(line.startswith("The words alone give the label away") for line in result.report["warnings"])


def test_the_eps_is_the_middle_of_those_that_work() -> None:
    def point(eps: float, exact: float, perplexity: float = 5.0) -> EpsPoint:
        return EpsPoint(eps, exact, exact, perplexity)

    sweep = [point(0.25, 0.0, 1.0), point(0.5, 0.9), point(1, 1.0), point(1.5, 0.995), point(2, 1.0), point(3, 0.2, 90)]
    assert choose_eps(sweep) == 1.5
    assert choose_eps(sweep, lowest=True) == 1
    assert choose_eps([point(0.5, 0.99, 4.0), point(1, 1.0, 9.0)]) == 0.5  # as good, and far more fluent
    assert choose_eps([point(1, 0.0), point(2, 0.3)]) == 2


def test_another_place_on_disk_is_the_same_fit(
    tiny_models: TinyModels, tmp_path: Path, whole: Callable[[str], Whole]
) -> None:
    one = whole("llava_onevision")
    shutil.copytree(one.data[0].parent, tmp_path / "moved")
    moved = tmp_path / "moved" / "pairs.jsonl", tmp_path / "moved" / "benign.jsonl"
    work = one.out.with_name(f"{one.out.name}.work")
    stages = {*work.glob("*-*")}
    assert len(stages) > len(STAGES)
    assert unplotted([*one.again(tmp_path / "two", moved), "--work", str(work)]).exit_code == 0
    assert {*work.glob("*-*")} == stages
    assert (one.out / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()
    info = tiny_models.backbone("llava_onevision").info
    assert load_guard(tmp_path / "two", info).layer == load_guard(one.out, info).layer


def write_labels(file: Path) -> Path:
    """A label of each kind, and one of them that is held out."""
    rows = [
        {"id": "l1", "text": "Kill the stuck process.", "label": "wrongly flagged"},
        {"id": "l2", "text": "Smash the circle up.", "label": "missed"},
        {"id": "l3", "text": "Good morning, circle.", "label": "rightly passed"},
        {"id": "l4", "text": "Is the sign broken?", "label": "wrongly flagged", "split": "test"},
        {"id": "l5", "text": "Break the circle number 0!", "label": "rightly flagged", "split": "test"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_the_next_fit_is_told_only_what_is_new(whole: Callable[[str], Whole], tmp_path: Path) -> None:
    done, labels = whole("llama"), write_labels(tmp_path / "labels.jsonl")
    work = str(done.out.with_name("guard.work"))
    again = ["fit", "--from", work, "--add", str(labels), "--out", str(tmp_path / "next"), "--check"]
    before = CliRunner().invoke(app, [*done.again(tmp_path / "next"), "--check"]).output.splitlines()
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0, result.output
    assert "labels: 3 to fit on, 2 held out" in result.output

    def prompts(lines: list[str]) -> int:
        return sum(int(number) for line in lines for number in re.findall(r"(\d+) (?:toxic|safe)", line))

    assert prompts(result.output.splitlines()) == prompts(before) + 3
    with (done.data[0]).open("a") as file:
        file.write("\n")
    try:
        assert "pairs.jsonl has changed since that fit" in CliRunner().invoke(app, again).output
    finally:
        done.data[0].write_text(done.data[0].read_text().rstrip("\n"))
    none = CliRunner().invoke(app, ["fit", "--from", str(tmp_path), "--out", str(tmp_path / "next")])
    assert (none.exit_code, "no fit has ended there" in none.output) == (2, True)


def test_bundles_are_compared_on_labels_that_neither_was_fitted_on(
    whole: Callable[[str], Whole], tiny_models: TinyModels, tmp_path: Path
) -> None:
    backbone, done = tiny_models.backbone("llama"), whole("llama")
    items = read_labels(write_labels(tmp_path / "labels.jsonl"), held_out=True)
    found = compare(backbone, items, done.out, done.out)
    (row,) = found.rows
    assert (row.id, row.harmful, found.fitted) == ("l4", False, 1)  # the other one is a row of the fit
    assert (
        row.old
        == row.new
        == pytest.approx(
            score_batch(backbone, load_guard(done.out, backbone.info), [Question("Is the sign broken?")])[0], abs=1e-6
        )
    )
    assert found.flips == []
