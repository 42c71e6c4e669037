from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from server.cli.fit import app
from steering.bundle import load_guard
from steering.errors import BundleError
from steering.fitting.reference_import import import_checkpoints
from tests.layouts import layout_of
from tests.reference import head as reference
from tests.steering.test_bundle import INFO

D = INFO.hidden_size


class Boom:
    """Pickles as a call: only the refusal to load more than tensors keeps it from running."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("/tmp/boom",)


@pytest.fixture
def paper() -> tuple[nn.Sequential, Tensor]:
    """A prober and a head as the paper's code makes them."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 2), nn.Softmax(dim=-1)), torch.randn(D, D)


def imported(folder: Path, prober: object, head: object, layer: int = 2) -> Path:
    torch.save(prober, folder / "epoch_37.pt")
    torch.save(head, folder / "Epoch_12.pt")
    import_checkpoints(
        folder / "epoch_37.pt",
        folder / "Epoch_12.pt",
        layer,
        INFO,
        folder / "guard",
        threshold=0.5,
        eps=0.1,
        refusal="No.",
    )
    return folder / "guard"


@pytest.mark.parametrize("wrapped", [False, True])
def test_scores_and_logits_are_the_papers(tmp_path: Path, paper: tuple[nn.Sequential, Tensor], wrapped: bool) -> None:
    prober, weight = paper
    state: object = {"model_state_dict": prober.state_dict(), "epoch": 37} if wrapped else prober.state_dict()
    head: object = {"steer": {"weight": weight}} if wrapped else weight
    guard = load_guard(imported(tmp_path, state, head), INFO)
    states, embedding = torch.randn(50, D), torch.randn(90, D)
    with torch.no_grad():
        toxic = prober(states)[:, 0]  # class 0
    scores = [guard.score(note[None], layout_of(1)) for note in guard.read(states[:, None])]
    assert torch.allclose(torch.tensor(scores), toxic, atol=1e-6)
    eps = torch.rand(50) * (torch.arange(50) % 3 > 0)
    logits = guard.steer(states, eps) @ embedding.T
    expected = reference.steered_logits(states, embedding, weight, eps)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert (guard.layer, guard.manifest.eps, guard.manifest.threshold) == (2, 0.1, 0.5)


def test_a_checkpoint_of_another_width_is_named(tmp_path: Path, paper: tuple[nn.Sequential, Tensor]) -> None:
    prober, weight = paper
    with pytest.raises(BundleError, match="no first layer of width 16"):
        imported(tmp_path, nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).state_dict(), weight)
    with pytest.raises(BundleError, match="0 matrices of 16 x 16"):
        imported(tmp_path, prober.state_dict(), torch.randn(8, 8))
    with pytest.raises(BundleError, match="not a prober"):
        imported(tmp_path, nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 3)).state_dict(), weight)


def test_a_layer_that_is_not_there_is_named(tmp_path: Path, paper: tuple[nn.Sequential, Tensor]) -> None:
    with pytest.raises(BundleError, match=r"layer 5 is not one of 0\.\.4"):
        imported(tmp_path, paper[0].state_dict(), paper[1], layer=5)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, paper: tuple[nn.Sequential, Tensor]) -> None:
    with pytest.raises(BundleError, match="no checkpoint of tensors alone"):
        imported(tmp_path, {"weights": Boom()}, paper[1])


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, paper: tuple[nn.Sequential, Tensor]) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save(paper[1], tmp_path / "head.pt")
    options = {"threshold": 0.5, "eps": 1.0, "refusal": "No."}
    for name in ("text.pt", "gone.pt"):
        with pytest.raises(BundleError, match=name):
            import_checkpoints(
                tmp_path / name,
                tmp_path / "head.pt",
                2,
                dataclasses.replace(INFO),
                tmp_path / "out",
                **options,  # type: ignore[arg-type]
            )


def test_a_strength_of_0_is_a_mistake(tmp_path: Path) -> None:
    files = ["--prober", "p.pt", "--head", "h.pt", "--out", str(tmp_path / "guard")]
    result = CliRunner().invoke(app, ["import-reference", "--model", "m", *files, "--layer", "2", "--eps", "0"])
    assert result.exit_code == 2
    assert "--eps must be more than 0" in result.output
