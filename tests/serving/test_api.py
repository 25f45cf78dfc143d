"""The service over HTTP, with real replicas: what clients get, and what a client cannot break."""

import asyncio
import base64
import gzip
import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from service import LONG, QUICK, Served, until

from stlib.experiment import JobMix
from stlib.queueing.job_table import JOB_COLUMNS, OUTCOMES
from stlib.serving.api import make_app
from stlib.serving.dispatcher import Dispatcher
from stlib.serving.replay import replay
from stlib.serving.rules import read_menu
from stlib.serving.server import MAX_BODY, listen, url_of
from stlib.serving.targets import HttpTarget
from stlib.serving.workloads.story_requests import StoryRequest

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def served(cluster):
    with Served(max_waiting=8) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    yield
    if "served" in request.fixturenames:
        until(lambda: request.getfixturevalue("served").queue()["in_system"] == 0)


def test_a_story_comes_back_with_its_row(served):
    answer = served.send({"prompt": "a fox and a red balloon", "n_panels": 2, "steps": 2, "llm_tokens": 16})
    told, row = answer.json(), json.loads(answer.headers["X-Job"])
    assert answer.status_code == 200 and told["story"] and len(told["captions"]) == 2
    assert [Image.open(io.BytesIO(base64.b64decode(panel))).size for panel in told["panels"]] == [(128, 128)] * 2
    assert set(row) == set(JOB_COLUMNS) and row["outcome"] == "completed" and row["method"] == "parallel"
    times = told["times_s"]
    assert times["response"] == pytest.approx(times["wait"] + row["finish_s"] - row["start_s"])
    assert 0 < times["denoising"] + times["llm_decode"] < times["service"] <= times["response"]
    assert told["expected_wait_s"] == 0  # nothing was ahead


def test_the_method_of_a_request_wins(served):
    assert served.send(QUICK | {"method": "sequential"}).json()["method"] == "sequential"


def test_the_menu_is_told(served):
    assert served.client.get("/methods").json() == {"methods": list(read_menu())}


def test_the_openai_client_draws_pictures(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    drawn = client.images.generate(prompt="a red balloon", n=2, size="96x64", model=client.models.list().data[0].id,
                                   response_format="b64_json", extra_body={"num_inference_steps": 2, "seed": 5})
    pictures = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in drawn.data]
    assert [picture.size for picture in pictures] == [(96, 64)] * 2
    assert np.asarray(pictures[0], float).std() > 5  # something was drawn
    with pytest.raises(openai.UnprocessableEntityError, match="72x64"):
        client.images.generate(prompt="a red balloon", size="72x64", model="storyteller")


BAD = [("stories", {}, "prompt"), ("stories", {"prompt": ""}, "prompt"), ("stories", {"prompt": "a" * 9999}, "prompt"),
       ("stories", {"prompt": 5}, "prompt"), ("stories", QUICK | {"steps": 0}, "steps"),
       ("stories", QUICK | {"steps": 10**6}, "steps"), ("stories", QUICK | {"image_size": 100_000}, "image_size"),
       ("stories", QUICK | {"method": "magic"}, "magic"), ("stories", QUICK | {"colour": "red"}, "colour"),
       ("stories", QUICK | {"captions": []}, "captions"), ("stories", QUICK | {"n_panels": 3}, "n_panels"),
       ("stories", QUICK | {"deadline_s": -1}, "deadline_s"), ("stories", QUICK | {"precision": "fp4"}, "precision"),
       ("stories", {"prompt": "a fox", "llm_tokens": 2}, "llm_tokens"), ("v1/images/generations", {}, "prompt"),
       ("v1/images/generations", {"prompt": "a fox", "n": 10**6}, "n"),
       ("v1/images/generations", {"prompt": "a fox", "size": "100000x100000"}, "size"),
       ("v1/images/generations", {"prompt": "a fox", "size": "big"}, "size"),
       ("v1/images/generations", {"prompt": "a fox", "num_inference_steps": 0}, "num_inference_steps"),
       ("v1/images/generations", {"prompt": "a fox", "response_format": "url"}, "response_format")]


@pytest.mark.parametrize(("route", "body", "named"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_with_the_field_and_no_job(served, route, body, named):
    before = served.queue()["offered"]
    answer = served.client.post(f"/{route}", json=body)
    assert answer.status_code == 422 and named in answer.json()["error"]["message"]
    assert served.queue()["offered"] == before


IMAGES = "v1/images/generations"
PICTURE = {"prompt": "a fox", "size": "64x64", "num_inference_steps": 1}


@pytest.mark.parametrize(("route", "body", "param"), [
    (IMAGES, {"size": "1024x1024"}, "size"), (IMAGES, {"size": "8x8"}, "size"), (IMAGES, {"size": "72x64"}, "size"),
    (IMAGES, {"size": 128}, "size"), (IMAGES, {"num_inference_steps": 0}, "num_inference_steps"),
    (IMAGES, {"n": 99}, "n"), (IMAGES, {"n": True}, "n"), (IMAGES, {"prompt": "a fox \ud83e"}, "prompt"),
    (IMAGES, {"prompt": None}, "prompt"), (IMAGES, {"seed": -1}, "seed"), (IMAGES, {"deadline_s": -1}, "deadline_s"),
    (IMAGES, {"output_format": "gif"}, "output_format"), (IMAGES, {"output_compression": 50}, "output_compression"),
    (IMAGES, {"stream": True}, "stream"), (IMAGES, {"partial_images": 2}, "partial_images"),
    (IMAGES, {"negative_prompt": "blue"}, "negative_prompt"), (IMAGES, {"quality": "hd"}, "quality"),
    (IMAGES, {"style": "vivid"}, "style"), (IMAGES, {"background": "transparent"}, "background"),
    (IMAGES, {"image": "iVBOR"}, "image"), (IMAGES, {"mask": "iVBOR"}, "mask"), (IMAGES, {"strength": 0.5}, "strength"),
    (IMAGES, {"num_images": 3}, "num_images"), (IMAGES, {"response_format": "url"}, "response_format"),
    (IMAGES, {"lora": {"name": "x"}}, "lora"), ("stories", {"captions": ["a\ud83e"]}, "captions"),
    ("stories", {"image_size": 72}, "image_size"), ("stories", {"method": "magic"}, "method"),
    ("stories", {"colour": "red"}, "colour"), ("stories", {"\ud83e": 1}, "\ud83e"), ("stories", {"self": 1}, "self"),
    ("stories", {"prompt": "\N{FOX FACE}" * 400}, "prompt"), ("stories", {"prompt": "狐" * 200}, "prompt"),
    ("stories", {"prompt": "a\x00fox"}, "prompt"), ("stories", {"llm_tokens": 10**400}, "llm_tokens")])
def test_an_error_has_the_caller_s_field_and_a_code_in_words(served, route, body, param):
    before = served.queue()["offered"]
    content = json.dumps((PICTURE if route == IMAGES else {"prompt": "a fox"}) | body)
    answer = served.client.post(f"/{route}", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 422 and (error["param"], error["code"]) == (param, f"invalid_{param}")
    assert error["type"] == "invalid_request_error" and repr(param)[1:-1] in error["message"]
    assert len(error["message"].splitlines()) == 1 and served.queue()["offered"] == before


@pytest.mark.parametrize("field", ["n", "size", "response_format", "model", "seed", "num_inference_steps", "stream",
                                   "guidance_scale", "output_format", "output_compression", "quality", "style", "user",
                                   "negative_prompt", "background", "deadline_s", "method", "nothing"])
def test_null_is_absent_in_the_images_call(served, field):
    answer = served.client.post(IMAGES, json={"prompt": "a fox", "size": "64x64", "num_inference_steps": 1, field: None}
                                if field not in ("size", "num_inference_steps") else PICTURE | {field: None})
    assert answer.status_code == 200 and len(answer.json()["data"]) == 1


def test_null_is_absent_in_a_story(served):
    for field in StoryRequest.model_fields.keys() - {"captions", "steps", "image_size"}:
        assert served.send(QUICK | {field: None}).status_code == 200, field
    for field in ("captions", "steps", "image_size"):
        assert served.send({"prompt": "a fox", "n_panels": 1, "llm_tokens": 4, "steps": 1} | {field: None}).is_success


@pytest.mark.parametrize("harmless", [{"user": "me", "moderation": "low", "colour": "red"}, {"quality": "standard"},
                                      {"stream": False, "partial_images": 0}, {"negative_prompt": ""},
                                      {"background": "opaque"}, {"num_images": 1}, {"model": "gpt-image-1"}])
def test_fields_that_change_nothing_are_ignored(served, harmless):
    assert served.client.post(IMAGES, json=PICTURE | harmless).status_code == 200


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_output_formats(served, form):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    extra = {"num_inference_steps": 1, "seed": 1}
    drawn = client.images.generate(prompt="a fox", size="64x64", output_format=form, extra_body=extra)
    picture = base64.b64decode(drawn.data[0].b64_json)
    assert Image.open(io.BytesIO(picture)).format == form.upper() and drawn.output_format == form
    assert drawn.size == "64x64" and Image.open(io.BytesIO(picture)).size == (64, 64)
    if form != "png":
        small = client.images.generate(prompt="a fox", size="64x64", output_format=form, output_compression=5,
                                       extra_body=extra)
        assert len(base64.b64decode(small.data[0].b64_json)) < len(picture) / 2


def test_a_stream_is_refused_not_empty(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    with pytest.raises(openai.UnprocessableEntityError, match="stream = 'True' is not done here") as error:
        client.images.generate(prompt="a fox", stream=True)
    assert error.value.code == "invalid_stream" and error.value.param == "stream"


def test_the_deadline_and_method_of_an_images_call(served):
    answer = served.client.post(IMAGES, json=PICTURE | {"method": "sequential", "deadline_s": 30})
    assert json.loads(answer.headers["X-Job"])["method"] == "sequential"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.send, LONG)
        until(lambda: served.queue()["busy"] == 1)
        late = served.client.post(IMAGES, json=PICTURE | {"deadline_s": 0.05})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_passed")
        assert running.result().status_code == 200


def test_head_is_answered_as_get(served):
    for path in ("/", "/healthz", "/readyz", "/health", "/queue", "/metrics", "/v1/models", "/openapi.json", "/docs"):
        answer = served.client.head(path)
        assert answer.status_code == 200 and answer.content == b"" and int(answer.headers["Content-Length"]) > 0, path
    assert served.client.head("/stories").status_code == 405 and served.client.head("/nowhere").status_code == 404


def test_models_by_name(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    [model] = client.models.list().data
    assert client.models.retrieve(model.id) == model
    for name in ("gpt-image-1", "owner/model", "a model"):
        with pytest.raises(openai.NotFoundError, match="use storyteller") as error:
            client.models.retrieve(name)
        assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_a_compressed_body_is_refused_by_name(served, coding):
    content = gzip.compress(json.dumps(QUICK).encode())
    answer = served.client.post("/stories", content=content,
                                headers={"Content-Type": "application/json", "Content-Encoding": coding})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_content_encoding") and coding in error["message"]
    assert served.client.post("/stories", json=QUICK, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
                                  "application/jsonl", "application/xml"])
def test_another_content_type_is_named(served, kind):
    answer = served.client.post("/stories", content=json.dumps(QUICK), headers={"Content-Type": kind} if kind else {})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_content_type")
    assert repr(kind) in error["message"] and "application/json" in error["message"]


def test_json_by_any_of_its_types_is_read(served):
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        assert served.client.post("/stories", content=json.dumps(QUICK), headers={"Content-Type": kind}).is_success


def test_errors_have_codes_in_words(served):
    kind = {"Content-Type": "application/json"}
    answers = {"invalid_json": served.client.post("/stories", content=b"{", headers=kind),
               "not_found": served.client.get("/nowhere"), "method_not_allowed": served.client.get("/stories"),
               "invalid_body": served.client.post("/stories", json=[1])}
    for code, answer in answers.items():
        assert answer.json()["error"]["code"] == code and set(answer.json()["error"]) == {
            "message", "type", "param", "code"}


@pytest.mark.parametrize(("content", "status"), [(b"{", 400), (b"", 422), (b"[1]", 422), (b'{"prompt": NaN}', 422),
                                                  (b"\xff\xfe", 400), (b" " * (MAX_BODY + 1), 413)])
def test_bodies_that_are_no_request(served, content, status):
    answer = served.client.post("/stories", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_refusal_takes_no_time(served):
    """P99 of 200, while a job runs."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.send, LONG)
        spent = []
        while not running.done() or len(spent) < 200:
            began = time.monotonic()
            served.client.post("/stories", json={"prompt": ""})
            spent.append(time.monotonic() - began)
        assert running.result().status_code == 200
    assert np.quantile(spent, 0.99) < 0.1


def test_a_full_queue_refuses_at_once_and_recovers(served):
    before = served.queue()
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: served.send(QUICK | {"steps": 10}), range(30)))
    statuses = [answer.status_code for answer in answers]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert set(statuses) == {200, 503} and 9 <= statuses.count(200) < 30
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    after = served.queue()
    assert [after[name] - before[name] for name in ("offered", "completed", "rejected")] == [
        30, statuses.count(200), len(refused)]
    assert served.send(QUICK).status_code == 200


def test_a_deadline_that_passes_in_the_queue(served):
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(served.send, LONG)
        until(lambda: served.queue()["busy"] == 1)
        answer = served.send(QUICK | {"deadline_s": 0.05})
        assert answer.status_code == 504 and json.loads(answer.headers["X-Job"])["start_s"] is None
        assert running.result().status_code == 200


def test_a_client_that_goes_takes_its_waiting_job_with_it(served):
    before = served.queue()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.send, LONG)
        until(lambda: served.queue()["busy"] == 1)
        for _ in range(8):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/stories", json=LONG, timeout=0.05)
        until(lambda: served.queue()["waiting"] == 0, timeout_s=2)
        assert running.result().status_code == 200
    after = served.queue()
    assert after["cancelled"] - before["cancelled"] == 8 and after["completed"] - before["completed"] == 1


def test_the_expected_wait_counts_those_ahead(served):
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(served.send, LONG) for _ in range(3)]
        until(lambda: served.queue()["in_system"] == 3)
        assert 2 * 1.5 < served.queue()["expected_wait_s"] <= 3 * 1.5
        said = sorted(job.result().json()["expected_wait_s"] for job in jobs)
    assert said[0] == 0 and 1.5 < said[2] <= 3


def test_health_and_metrics(served):
    assert served.client.get("/healthz").json() == {"status": "alive"}
    assert served.client.get("/readyz").json()["replicas"] == 1
    served.send(QUICK)
    families = {family.name: family for family in text_string_to_metric_families(served.client.get("/metrics").text)}
    counted = {sample.labels["outcome"]: sample.value for sample in families["jobs"].samples}
    assert set(counted) == set(OUTCOMES) and counted["completed"] == served.queue()["completed"]
    assert families["dispatcher_replicas"].samples[0].value == 1
    assert any(sample.name.endswith("_count") for sample in families["job_response_seconds"].samples)


def test_unknown_paths_and_methods(served):
    assert served.client.get("/nowhere").status_code == 404 and served.client.get("/stories").status_code == 405
    assert "/stories" in served.client.get("/openapi.json").json()["paths"]


def test_replay_over_http_is_the_same_table(served):
    jobs = JobMix.from_yaml("images").sample(6, np.random.default_rng(3)).assign(steps=2)
    target = HttpTarget(served.url, "/v1/images/generations")
    table, products = replay(jobs, np.arange(6) * 0.2, target, progress=False)
    state = target.queue()
    assert (table["outcome"] == "completed").all() and list(table["job_id"]) == list(range(6))
    assert (table["arrival_s"] - table["scheduled_s"]).between(-0.005, 0.1).all()
    assert (table["reply_s"] > table["finish_s"]).all() and (products["expected_wait_s"] >= 0).all()
    in_system = (table["reply_s"] - table["scheduled_s"]).sum()
    assert state["offered"] == 6 and state["job_seconds"] == pytest.approx(in_system, rel=0.1)


def test_no_service_and_a_bad_route_are_named():
    with pytest.raises(RuntimeError, match="python -m stlib serve"):
        HttpTarget("http://127.0.0.1:9").reset()
    with pytest.raises(ValueError, match="/tables"):
        HttpTarget("http://127.0.0.1:9", "/tables")


def test_a_token_is_asked_for_but_for_health_and_page():
    dispatcher = Dispatcher("story", 1)

    async def statuses():
        transport = httpx.ASGITransport(make_app(dispatcher, token="secret"))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
            answers = [await caller.get(path) for path in ("/queue", "/healthz", "/", "/metrics")]
            right = await caller.get("/queue", headers={"Authorization": "Bearer secret"})
            wrong = await caller.get("/queue", headers={"Authorization": "Bearer guess"})
        return [answer.status_code for answer in (*answers, right, wrong)]

    assert asyncio.run(statuses()) == [401, 200, 200, 401, 200, 401]


def test_other_addresses_need_a_token_and_a_taken_port_is_named():
    with pytest.raises(ValueError, match="--token"):
        listen("0.0.0.0", 0, None)
    with listen("127.0.0.1", 0, None) as sock, pytest.raises(RuntimeError, match="another --port"):
        listen("127.0.0.1", sock.getsockname()[1], None)


@pytest.mark.parametrize("port", [-1, 65536, 70_000, 10**9])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ValueError, match=f"port = {port}: give 0 .* to 65535"):
        listen("127.0.0.1", port, None)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "256.1.1.1", "a" * 300, "127.0.0.1:80", "[::1]"])
def test_a_host_without_an_address_is_named(host):
    with pytest.raises(ValueError, match="has no address") as error:
        listen(host, 0, None)
    assert host in str(error.value)


def test_an_address_of_another_machine_is_named():
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1.*--host"):
        listen("192.0.2.1", 0, "token")


def test_a_reply_waits_for_no_acknowledgement():
    """Of its first packet, which a client may delay by 40 ms: what a connection inherits from the listening socket."""
    with (listen("127.0.0.1", 0, None) as sock, socket.create_connection(sock.getsockname()),
          sock.accept()[0] as accepted):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_loopback_by_any_name_is_served_without_a_token(host):
    try:
        sock = listen(host, 0, None)
    except RuntimeError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with sock:
        url = url_of(sock)
        assert url.startswith("http://[::1]:" if host == "::1" else "http://127.0.0.1:")
        sock.settimeout(5)
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port)), sock.accept()[0]:
            pass


@pytest.mark.parametrize("host", ["::", "0.0.0.0"])
def test_all_addresses_need_a_token(host):
    with pytest.raises(ValueError, match="--token"):
        listen(host, 0, None)
