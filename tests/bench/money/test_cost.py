from datetime import date, timedelta

import pytest

from twofour.bench.hardware import Gpu, Hardware
from twofour.bench.money import cost
from twofour.bench.money.cost import Price
from twofour.prune.errors import InputError

GIB = 2**30


def machine(cpus: int, memory_gib: float | None = 4, *, system: str = "Linux 6.1 x86_64") -> Hardware:
    return Hardware(system, "cpu", cpus, (), None if memory_gib is None else round(memory_gib * GIB), ())


def with_gpus(*gpus: tuple[str, float]) -> Hardware:
    return Hardware("Linux", "cpu", 8, (), GIB, tuple(Gpu(name, round(gib * GIB), "1") for name, gib in gpus))


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
@pytest.mark.parametrize("memory_gib", [0.5, 3.8, 24, 31.2, 385])
def test_a_machine_costs_what_the_cheapest_that_holds_it_costs(cpus: int, memory_gib: float) -> None:
    rows = [row for listing in cost.prices()["cpu"] for row in listing["instances"]]
    fitting = [row["usd_per_hour"] for row in rows if row["cpus"] >= cpus and row["memory_gib"] >= memory_gib]
    price = cost.price_of(machine(cpus, memory_gib), on_gpu=False)
    assert isinstance(price, Price) and price.usd_per_hour == min(fitting)


def test_memory_is_paid_for() -> None:
    names = [cost.price_of(machine(2, gib), on_gpu=False) for gib in (3.8, 7.7, 15.5, 31.0)]
    assert [price.name for price in names if isinstance(price, Price)] == [
        *("AWS c7i.large", "AWS m7i.large", "AWS r7i.large", "AWS r7i.xlarge"),
    ]


@pytest.mark.parametrize(
    ("driver", "gib", "name", "dollars"),
    [  # as nvidia-smi spells them, with what it says of their memory
        ("NVIDIA A100-SXM4-80GB", 80.0, "A100 80GB", 1.39),
        ("A100-SXM4-80GB", 80.0, "A100 80GB", 1.39),  # an older driver
        ("NVIDIA A100 80GB PCIe", 80.0, "A100 80GB", 1.39),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM", 2.95),
        ("NVIDIA H100 PCIe", 79.6, "H100 PCIe", 2.79),
        ("NVIDIA H200", 140.4, "H200 SXM", 3.5),
        ("NVIDIA B200", 179.1, "B200", 5.5),
        ("NVIDIA L40S", 45.0, "L40S", 1.55),
        ("NVIDIA GeForce RTX 4090", 24.0, "RTX 4090", 0.6),
    ],
)
def test_a_gpu_is_found_by_its_whole_name(driver: str, gib: float, name: str, dollars: float) -> None:
    price = cost.price_of(with_gpus((driver, gib)), on_gpu=True)
    assert isinstance(price, Price) and (price.name, price.usd_per_hour) == (name, dollars)


@pytest.mark.parametrize(
    ("driver", "gib"),
    [
        ("NVIDIA GH200 480GB", 95.6),
        ("NVIDIA GH200 144G HBM3e", 140.4),
        ("NVIDIA GB200", 184.0),
        ("NVIDIA H200 NVL", 140.4),
        ("NVIDIA H100 NVL", 93.6),
        ("NVIDIA H20", 95.6),
        ("NVIDIA A100-SXM4-40GB", 40.0),
        ("NVIDIA A100-PCIE-40GB", 40.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16.0),
        ("NVIDIA GeForce RTX 4090 D", 24.0),
        ("NVIDIA L40", 45.0),
        ("NVIDIA H100 80GB HBM3", 39.8),  # a part of one
    ],
)
def test_a_similar_gpu_is_another_one(driver: str, gib: float) -> None:
    assert cost.price_of(with_gpus((driver, gib)), on_gpu=True) == f"the price table has no {driver} with {gib:.0f} GiB"


def test_eight_cost_eight_times_as_much() -> None:
    price = cost.price_of(with_gpus(*[("NVIDIA H100 80GB HBM3", 79.6)] * 8), on_gpu=True)
    assert isinstance(price, Price)
    assert (price.name, price.usd_per_hour) == ("8 x H100 SXM", pytest.approx(8 * 2.95))


@pytest.mark.parametrize(
    ("of", "on_gpu", "why"),
    [
        (machine(10_000), False, "no instance of the price table has 10000 CPUs and 4 GiB of memory"),
        (machine(2, 9000), False, "no instance of the price table has 2 CPUs and 9000 GiB of memory"),
        (machine(2, None), False, "this system does not say how much memory it has"),
        (machine(2, system="Darwin 24 arm64"), False, "x86-64 instances only, and this machine is Darwin 24 arm64"),
        (machine(8), True, "no GPU was found"),
        (with_gpus(("NVIDIA H100 80GB HBM3", 79.6), ("NVIDIA L40S", 45)), True, "GPUs of several kinds: NVIDIA H100"),
    ],
)
def test_without_a_match_there_is_a_reason_and_no_price(of: Hardware, on_gpu: bool, why: str) -> None:
    found = cost.price_of(of, on_gpu)
    assert isinstance(found, str) and why in found


def test_every_price_has_a_date_and_a_source() -> None:
    table = cost.prices()
    for row in [*table["cpu"], *table["gpu"]]:
        assert isinstance(row["as_of"], date) and row["source"] and row["kind"] in {"list", "catalog", "blog"}
    for row in table["gpu"]:
        assert row["range"][0] <= row["usd_per_hour"] <= row["range"][1]


def test_old_prices_say_so() -> None:
    price = cost.price_of(machine(2), on_gpu=False)
    assert isinstance(price, Price) and price.as_of is not None
    assert price.warning(price.as_of + timedelta(days=90)) is None
    assert "91 days old" in (price.warning(price.as_of + timedelta(days=91)) or "")
    assert cost.given(1.0).warning(date(2100, 1, 1)) is None


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_no_price_is_no_price(amount: float) -> None:
    with pytest.raises(InputError, match="price-per-hour"):
        cost.given(amount)
