"""The cost model of trainings on cards that nobody has timed."""

from __future__ import annotations

from typing import Any

import pytest

from openbezoar.machine.cards import SPEEDS
from openbezoar.machine.devices import CARDS, device_named
from openbezoar.models.fitting import settled
from openbezoar.models.memory import parameters
from openbezoar.models.pace import fit_of, pass_seconds
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import Sft

PAPER = Shape(hidden=3200, layers=26, heads=32, mlp=8640, vocabulary=32_000)


def seconds(card: str, tokens: int, **settings: Any) -> float:
    device = CARDS[card]
    step = settled(Sft(sft="x", model="base", **{"tokens": tokens, "checkpointing": False, **settings}), PAPER, device)
    return pass_seconds(PAPER, step, device, SPEEDS[device.name], tokens, length=256, passes=2)


def test_every_speed_is_a_card_s_and_has_its_source() -> None:
    assert set(SPEEDS) <= {card.name for card in CARDS.values()}
    assert all(speed.source and 0 < speed.small <= speed.large < 1 for speed in SPEEDS.values())


@pytest.mark.parametrize("card", ["t4", "rtx3090", "rtx4090", "a100", "h100"])
def test_a_pass_takes_longer_than_its_products_alone_and_less_than_twice_that(card: str) -> None:
    speed = SPEEDS[CARDS[card].name]
    products = 4 * parameters(PAPER)[0] * 4096 / (speed.peak * speed.large)
    assert products < seconds(card, 4096) < 2 * products


def test_recomputing_all_layers_over_a_frozen_base_costs_half_and_not_a_third() -> None:
    """Forward and the gradients of activations are 4N; another forward pass 2N more."""
    assert 1.42 < seconds("t4", 4096, checkpointing=True) / seconds("t4", 4096) < 1.5
    whole = {"lora": "none", "quantize": "none"}
    assert seconds("t4", 4096, checkpointing=True, **whole) / seconds("t4", 4096, **whole) < 1.36


def test_a_short_pass_waits_for_its_launches_and_packed_weights_for_their_unpacking() -> None:
    assert seconds("h100", 64) > 0.9 * seconds("h100", 512), "the card is idle"
    assert seconds("h100", 1024) / 1024 > 1.3 * seconds("h100", 8192) / 8192
    packed, unpacked = (seconds("t4", 2048, nf4=way) for way in ("packed", "unpacked"))
    assert packed - unpacked == pytest.approx(2 * 2.5 * parameters(PAPER)[0] / (0.85 * 320e9))


def test_two_cards_halve_the_time_but_for_their_sums_and_a_card_of_unknown_speed_has_none() -> None:
    step = Sft(sft="x", model="base", batch=32)
    one, two, unknown = (
        fit_of(PAPER, step, device_named(name), length=512).tokens_per_second for name in ("t4", "2xt4", "rtx3060")
    )
    assert one and two and 1.9 * one < two < 2 * one
    assert unknown is None
    assert (
        fit_of(PAPER, step.model_copy(update={"dtype": "float32"}), CARDS["t4"], length=512).tokens_per_second is None
    )
