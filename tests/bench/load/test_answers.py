"""Answers that are no stream, or an odd one, through a real socket: each has its own name, and none is a truncation."""

from twofour.bench.load import answers, client, decode
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, schedule
from twofour.bench.proof.mock import Script, serving

CUT = "truncated: the stream ended without a finish reason"


def answer(status: str, body: str = "", *headers: str) -> str:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body])


def stream(*events: str) -> str:
    return answer("200 OK", "".join(f"data: {event}\n\n" for event in events), "Content-Type: text/event-stream")


TOKEN = '{"choices": [{"text": " a", "finish_reason": "length"}], "error": null, "usage": {"completion_tokens": 1}}'
ANSWERS = {
    answer("301 Moved", "", "Location: http://elsewhere/v1"): (
        "status 301: the server sends on to http://elsewhere/v1; give the address that answers itself"
    ),
    answer("307 Temporary Redirect", "", "Location: /login?key=secret"): (
        "status 307: the server sends on to /login; give the address that answers itself"
    ),
    "HTTP/1.1 204 No Content\r\n\r\n": "status 204: no answer is in it; is the API there? check the address",
    answer("200 OK", "<title>Log in</title>", "Content-Type: text/html"): (
        "no API: text/html instead of a stream: <title>Log in</title>; check the address, and log-ins on the way"
    ),
    answer("200 OK", TOKEN, "Content-Type: application/json"): (
        'not streamed: the answer came whole; the server ignores "stream", measure one that heeds it'
    ),
    stream(TOKEN, "[DONE]"): None,
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + stream(TOKEN, "[DONE]"): None,
    stream(TOKEN.replace("length", "")): CUT,
}


def test_every_answer_is_called_what_it_is() -> None:
    requests = schedule(len(ANSWERS), Lengths(8), Lengths(1), seed=0)
    with serving(Script(answers=tuple(ANSWERS))) as mock:
        jobs = client.jobs(Service(mock.url, "mock"), requests, "nonce")
        with client.connected(mock.url, 5.0) as session:
            session.send(jobs, 1)
    records = [decode.record(job.exchange) for job in jobs]
    assert [record.error for record in records] == list(ANSWERS.values())
    well = [record for record in records if record.error is None]
    assert [(len(record.chunks), record.output_tokens, record.prompt_tokens) for record in well] == [(1, 1, None)] * 2
    assert mock.connections == 1  # none of them leaves the connection in a state of its own


def test_what_a_server_says_does_not_steer_a_terminal() -> None:
    body = b'{"error": {"message": "\\u001b[31mred\\u0007"}}'
    assert answers.refusal(401, {}, body, ()) == "status 401:  [31mred "
