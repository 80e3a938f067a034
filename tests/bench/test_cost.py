from datetime import date, timedelta

import pytest

from twofour.bench import cost
from twofour.bench.hardware import Gpu, Hardware
from twofour.prune.errors import InputError


def machine(cpus: int, *gpus: str) -> Hardware:
    return Hardware("Linux", "cpu", cpus, (), None, tuple(Gpu(name, 2**34, "1") for name in gpus))


def test_one_hour_bought_by_hand() -> None:
    # 100 input and 50 output tokens a second: 360,000 and 180,000 in an hour of 3.60 dollars.
    found = cost.cost(3.6, 100, 50)
    assert found.blended == pytest.approx(3.6 / 0.54)
    assert found.output_only == pytest.approx(3.6 / 0.18)
    assert found.split_output == pytest.approx(4 * found.split_input)


@pytest.mark.parametrize(("inputs", "outputs"), [(0.0, 10.0), (1.0, 1.0), (5000.0, 3.0)])
def test_the_split_pays_for_the_hour(inputs: float, outputs: float) -> None:
    found = cost.cost(2.5, inputs, outputs)
    paid = 3600 * (inputs * found.split_input + outputs * found.split_output) / 1e6
    assert paid == pytest.approx(2.5)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 5, 64, 65, 192])
def test_a_machine_costs_what_the_cheapest_that_holds_it_costs(cpus: int) -> None:
    table = cost.prices()["cpu"]["instances"]
    price = cost.price_of(machine(cpus), on_gpu=False)
    assert price is not None
    assert price.usd_per_hour == min(row["usd_per_hour"] for row in table if row["cpus"] >= cpus)


def test_no_price_for_what_the_table_does_not_hold() -> None:
    assert cost.price_of(machine(10_000), on_gpu=False) is None
    assert cost.price_of(machine(8, "NVIDIA GeForce GT 710"), on_gpu=True) is None
    assert cost.price_of(machine(8, "NVIDIA H100", "NVIDIA L40S"), on_gpu=True) is None
    assert cost.price_of(machine(8), on_gpu=True) is None


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_gpu_is_found_by_the_name_of_its_driver(driver: str, name: str) -> None:
    price = cost.price_of(machine(8, driver), on_gpu=True)
    assert price is not None and price.name == name


def test_a_40_gb_card_is_not_priced_as_its_larger_sister() -> None:
    assert cost.price_of(machine(8, "NVIDIA A100-PCIE-40GB"), on_gpu=True) is None


def test_every_price_has_a_date_and_a_source() -> None:
    table = cost.prices()
    for row in [table["cpu"], *table["gpu"]]:
        assert isinstance(row["as_of"], date) and row["source"] and row["kind"] in {"list", "catalog", "blog"}
    for row in table["gpu"]:
        assert row["range"][0] <= row["usd_per_hour"] <= row["range"][1]


def test_old_prices_say_so() -> None:
    price = cost.price_of(machine(2), on_gpu=False)
    assert price is not None and price.as_of is not None
    assert price.warning(price.as_of + timedelta(days=90)) is None
    assert "91 days old" in (price.warning(price.as_of + timedelta(days=91)) or "")
    assert cost.given(1.0).warning(date(2100, 1, 1)) is None


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_no_price_is_no_price(amount: float) -> None:
    with pytest.raises(InputError, match="price-per-hour"):
        cost.given(amount)
