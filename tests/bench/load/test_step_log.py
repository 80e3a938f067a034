import math

from twofour.bench.load.step_log import Step, read

OLD = {"total": 9, "prefill_tokens": [8, 0], "decodes": [0, 2], "kv_tokens": [8, 12], "seconds": [0.5, 0.1]}
NEW = OLD | {
    "decode_kv_tokens": [0, 12],
    "prefill_pairs": [36, 0],
    "waiting": [3, 0],
    "started_at": [1.0, 2.0],
}


def test_a_log_is_read_whatever_its_version() -> None:
    told, old = read(NEW), read(OLD)
    assert told and told.steps == [Step(8, 0, 0, 0.5, 36, 1.0, 3), Step(0, 2, 12, 0.1, 0, 2.0, 0)]
    assert old and old.steps == [Step(8, 0, 8, 0.5), Step(0, 2, 12, 0.1)]


def test_what_came_since_and_what_was_lost() -> None:
    before, after = read(OLD | {"total": 4}), read(OLD)
    assert before and after
    assert (after.since(before), after.lost_since(before)) == (after.steps, 3)  # 5 came, 2 are there
    assert (after.since(after), after.lost_since(after)) == ([], 0)


def test_what_is_no_log_is_none() -> None:
    assert read(None) is read({"total": 3}) is read(NEW | {"seconds": [0.1]}) is None
    assert read(NEW | {"total": None}) is read(NEW | {"total": "many"}) is read(NEW | {"total": math.inf}) is None
