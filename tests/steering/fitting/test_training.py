from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from steering.fitting.training import Forced, Optimisation, Spared, States, fit_head, fit_prober
from steering.prober import Prober
from tests.reference import prober as reference
from tests.reference import training as head_reference


def planted(n: int, d: int, strength: float, seed: int) -> States:
    """Two Gaussian classes whose means are `strength` apart, on features of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, d, generator=generator)
    direction = nn.functional.normalize(torch.randn(d, generator=torch.Generator().manual_seed(99)), dim=0)
    x += strength * (y[:, None] - 0.5) * direction
    return States(x * torch.logspace(-2, 2, d) + 5.0, y)


def auroc(prober: Prober, states: States) -> float:
    return float(roc_auc_score(states.y.numpy(), prober(states.x).numpy()))


@pytest.mark.parametrize("strength", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("hidden", [0, 64])
def test_a_planted_direction_is_found_as_well_as_can_be(strength: float, hidden: int) -> None:
    optimum = 0.5 * (1 + math.erf(strength / 2))  # AUROC of the likelihood ratio: Phi(strength / sqrt 2)
    prober, _ = fit_prober(planted(4000, 16, strength, 0), planted(1000, 16, strength, 1), hidden=hidden)
    assert auroc(prober, planted(20_000, 16, strength, 2)) == pytest.approx(optimum, abs=0.01)


def test_no_signal_is_found_in_shuffled_labels() -> None:
    train, held_out, fresh = (planted(2000, 16, 3.0, seed) for seed in range(3))
    shuffled = [
        States(each.x, each.y[torch.randperm(len(each.y), generator=torch.Generator().manual_seed(5))])
        for each in (train, held_out, fresh)
    ]
    prober, _ = fit_prober(shuffled[0], shuffled[1])
    assert auroc(prober, shuffled[2]) == pytest.approx(0.5, abs=0.05)


def test_rare_toxic_prompts_are_weighed_like_the_safe_ones() -> None:
    everything = planted(6000, 8, 2.0, 0)
    keep = (everything.y == 0) | (torch.arange(6000) % 20 == 1)
    rare = States(everything.x[keep], everything.y[keep])
    prober, _ = fit_prober(rare, rare, hidden=0)
    scores, fresh = prober.score(planted(4000, 8, 2.0, 1).x), planted(4000, 8, 2.0, 1)
    flagged = (prober(fresh.x) > 0).float()
    assert flagged[fresh.y == 1].mean() == pytest.approx(1 - float(flagged[fresh.y == 0].mean()), abs=0.15)
    assert bool(((scores >= 0) & (scores <= 1)).all())


def test_a_few_hard_negatives_are_told_from_what_they_look_like() -> None:
    def looking_harmful(count: int, seed: int) -> Tensor:
        """Harmless prompts that stand where harmful ones do, but for one feature."""
        states = planted(2 * count, 16, 6.0, seed)
        return states.x[states.y == 1] + 6 * 10**-2 * nn.functional.one_hot(torch.tensor(0), 16)

    def with_hard(count: int, seed: int) -> States:
        states, hard = planted(2000, 16, 6.0, seed), looking_harmful(count, seed + 10)
        mark = torch.arange(2000 + count) >= 2000
        return States(torch.cat([states.x, hard]), torch.cat([states.y, torch.zeros(count, dtype=torch.long)]), mark)

    train, held_out = with_hard(12, 0), with_hard(4, 1)
    prober, _ = fit_prober(train, held_out)
    plain, _ = fit_prober(States(train.x, train.y), States(held_out.x, held_out.y))
    fresh = looking_harmful(500, 2)
    flagged, otherwise = (float((each(fresh) > 0).float().mean()) for each in (prober, plain))
    assert flagged < min(0.1, otherwise / 2)
    assert auroc(prober, planted(4000, 16, 6.0, 3)) > 0.99


def test_the_same_seed_gives_the_same_prober() -> None:
    data = planted(300, 8, 2.0, 0), planted(100, 8, 2.0, 1)
    one, two = (fit_prober(*data)[0].state_dict() for _ in range(2))
    other = fit_prober(*data, optimisation=Optimisation(seed=1))[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["first.weight"], other["first.weight"])


def test_folding_is_standardising_first() -> None:
    torch.manual_seed(0)
    prober = Prober(5)
    mean, scale = torch.randn(5), torch.rand(5) + 0.5
    first = prober.first.weight.tolist(), prober.first.bias.tolist()
    assert isinstance(prober.second, nn.Linear)
    second = prober.second.weight[0].tolist(), prober.second.bias.item()
    prober.temperature.fill_(1.7)
    prober.fold(mean, scale)
    states = 3 * torch.randn(10, 5)
    expected = [reference.score(state, mean.tolist(), scale.tolist(), first, second, 1.7) for state in states.tolist()]
    assert prober.score(states).tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_of_bf16_states_are_computed_in_fp32() -> None:
    prober = Prober(16)
    states = torch.randn(3, 16).bfloat16()
    assert prober.score(states).dtype is torch.float32
    assert torch.equal(prober.score(states), prober.score(states.float()))


def test_every_epoch_is_told(vocabulary: Tensor) -> None:
    optimisation = Optimisation(epochs=20, patience=1)
    ticks: list[int] = []
    data = planted(300, 8, 2.0, 0), planted(100, 8, 2.0, 1)
    fit_prober(*data, optimisation=optimisation, tick=ticks.append)
    forced = Forced.of(torch.randn(4, 2, 24), [3, 17])
    fit_head(forced, forced, lambda h: h @ vocabulary.T, optimisation=optimisation, tick=ticks.append)
    assert sum(ticks) == 40


def test_cached_states_train_the_head_as_running_the_backbone_in_every_epoch_does(vocabulary: Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    train, held_out = (Forced.of(torch.randn(n, 2, 24, generator=generator), [3, 17]) for n in (40, 300))
    runs: list[int] = []

    def running(places: Forced) -> Callable[[], Forced]:
        return lambda: runs.append(1) or places  # type: ignore[func-returns-value]

    def logits(hidden: Tensor) -> Tensor:
        return hidden @ vocabulary.T

    optimisation = Optimisation(epochs=6, batch=32, patience=6)
    _, losses = fit_head(train, held_out, logits, optimisation=optimisation)
    expected = head_reference.fit_head(running(train), running(held_out), logits, 24, optimisation)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(runs) == 12


@pytest.fixture
def vocabulary() -> Tensor:
    return torch.randn(40, 24, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rank", [None, 8])
def test_the_head_learns_to_say_the_refusal(vocabulary: Tensor, rank: int | None) -> None:
    generator = torch.Generator().manual_seed(4)
    targets = torch.tensor([3, 17, 5, 9])
    # Every place of the text has a state of its own, with noise between prompts.
    places = 2 * torch.randn(4, 24, generator=generator)
    hidden = [places + 0.3 * torch.randn(n, 4, 24, generator=generator) for n in (64, 16)]
    head, losses = fit_head(
        Forced.of(hidden[0], targets.tolist()),
        Forced.of(hidden[1], targets.tolist()),
        lambda h: h @ vocabulary.T,
        rank=rank,
        optimisation=Optimisation(epochs=60, batch=64, learning_rate=1e-2),
    )
    fresh = places + 0.3 * torch.randn(20, 4, 24, generator=generator)
    said = (head.steer(fresh.flatten(0, 1), torch.ones(80)) @ vocabulary.T).argmax(-1)
    assert bool((said == targets.repeat(20)).float().mean() > 0.95)
    assert min(losses) < losses[0]


def test_a_sparing_head_says_the_refusal_and_leaves_harmless_states_alone(vocabulary: Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    targets, places = torch.tensor([3, 17, 5, 9]), 2 * torch.randn(4, 24, generator=generator)
    forced, held_out = (
        Forced.of(places + 0.3 * torch.randn(n, 4, 24, generator=generator), targets.tolist()) for n in (64, 16)
    )
    harmless = 2 * torch.randn(2000, 24, generator=generator)
    fresh = 2 * torch.randn(200, 24, generator=generator)

    def logits(hidden: Tensor) -> Tensor:
        return hidden @ vocabulary.T

    def measure(spared: Spared | None) -> tuple[float, float]:
        optimisation = Optimisation(epochs=40, batch=64, learning_rate=1e-2)
        head, losses = fit_head(forced, held_out, logits, spared=spared, optimisation=optimisation)
        assert min(losses) < losses[0]
        said = logits(held_out.hidden + head(held_out.hidden)).argmax(-1) == held_out.targets
        before, after = (logits(each).log_softmax(-1) for each in (fresh, fresh + head(fresh)))
        return float(said.float().mean()), float((before.exp() * (before - after)).sum(1).mean())

    plain, sparing = measure(None), measure(Spared.of(harmless))
    assert min(plain[0], sparing[0]) > 0.95
    assert sparing[1] < plain[1] / 4


def test_the_head_keeps_its_best_epoch(vocabulary: Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(8, 2, 24, generator=generator)
    held_out = torch.randn(8, 2, 24, generator=generator)  # nothing in common: it can only overfit
    targets = torch.tensor([3, 17])
    head, losses = fit_head(
        Forced.of(hidden, targets.tolist()),
        Forced.of(held_out, targets.tolist()),
        lambda h: h @ vocabulary.T,
        optimisation=Optimisation(epochs=50, batch=4, learning_rate=1e-1, patience=3),
    )
    flat = held_out.flatten(0, 1)
    loss = nn.functional.cross_entropy((flat + head(flat)) @ vocabulary.T, targets.repeat(8))
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)
    assert len(losses) < 50
