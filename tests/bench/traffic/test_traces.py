from pathlib import Path

import pytest

from twofour.bench.traffic import traces
from twofour.bench.traffic.traces import Row
from twofour.prune.errors import InputError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,110,27
2023-11-16 18:17:03.9899600,374,0
2023-11-16 18:17:03.9949600,7,44
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26}
"""


def read(tmp_path: Path, text: str) -> traces.Trace:
    (tmp_path / "trace").write_text(text)
    return traces.read(tmp_path / "trace")


def test_azures_csv_in_the_order_of_its_times(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE)
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [(4808, 10), (7, 44), (110, 27)]
    assert [row.at_s for row in trace.rows] == pytest.approx([0.0, 0.015, 0.052], abs=1e-5)
    assert (trace.name, trace.left_out) == ("trace", 1)


def test_azures_csv_of_a_year_later_has_zones(tmp_path: Path) -> None:
    rows = ["2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,9,6"]
    text = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])
    assert [row.at_s for row in read(tmp_path, text).rows] == pytest.approx([0.0, 0.99007], abs=1e-5)


def test_burstgpts_csv(tmp_path: Path) -> None:
    assert read(tmp_path, BURST).rows == [Row(0.0, 472, 18), Row(40.5, 1087, 230)]


def test_mooncakes_lines_are_in_milliseconds_and_name_blocks(tmp_path: Path) -> None:
    first, second = read(tmp_path, MOONCAKE).rows
    assert (first.at_s, first.blocks, second.blocks) == (0.0, (46, 47), ())
    assert second.at_s == pytest.approx(3.053)


@pytest.mark.parametrize(
    "text",
    ["128,64\n9,5\n", "prompt_tokens,output_tokens\n128,64\n9,5\n", "Request tokens,Response tokens\n128,64\n9,5\n"],
)
def test_lengths_alone(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).rows == [Row(None, 128, 64), Row(None, 9, 5)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        (AZURE + "yesterday,1,2\n", "line 6"),
        (AZURE.replace("110", "many"), "line 3"),
        (AZURE.replace("110", "-110"), "line 3 has impossible"),
        ("a,b\n1,2\n", "line 2"),
        (MOONCAKE + "{oh\n", "line 3"),
        (MOONCAKE + '{"timestamp": 1}\n', "line 3"),
        ('{"timestamp": "soon", "input_length": 1, "output_length": 1}\n', "line 1"),
        (MOONCAKE + "7\n", "line 3"),
        (MOONCAKE.replace("27482", "NaN"), "line 1 has impossible"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        traces.read(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        traces.read(tmp_path / "bytes")
