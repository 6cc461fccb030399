"""The server through the official OpenAI client: answers, streams, usage, errors as its exception types."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import re

import httpx
import openai
import pytest
import torch
from serve_client import Running, ask, image, make_assistant, png, running, uri, wait_until
from test_pdf import pdf
from test_video import film

from pumice.assistant import Assistant
from pumice.encode import encode
from pumice.evidence import evidence
from pumice.messages import to_sample
from pumice.serve.answers import prepare
from pumice.serve.errors import ApiError
from pumice.serve.keys import Caller, Keys
from pumice.serve.media import Room
from pumice.serve.parts import read_messages


@pytest.fixture(scope="module")
def assistant(tokenizer) -> Assistant:
    return make_assistant(tokenizer)


@pytest.fixture(scope="module")
def served(assistant):
    with running(assistant) as made:
        yield made
        wait_until(
            lambda: made.service.opener.room.held == made.server.admission.held == made.server.admission.working == 0
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("films") / "a.mp4"
    film(path)
    return {"png": png(1), "wide": png(2, (90, 30)), "pdf": pdf(((200, 100), (100, 200))), "film": path.read_bytes()}


def create(served: Running, **given):
    return served.client().chat.completions.create(**{"model": "tiny", "max_tokens": 8, **given})


def post(served: Running, path: str, **given) -> httpx.Response:
    return httpx.post(served.url + path, timeout=30, **given)


# answers


def test_an_answer_is_the_assistants_own(served, assistant):
    data = png(1)
    answer = create(served, messages=ask("What?", image(data)))
    own = assistant.ask(data, "What?", max_tokens=8)
    assert answer.choices[0].message.content == own.text
    assert answer.choices[0].finish_reason == own.finish
    assert answer.usage.prompt_tokens == own.prompt_tokens
    assert answer.usage.completion_tokens == own.tokens
    assert answer.usage.prompt_tokens_details.visual_tokens == own.visual_tokens > 0


def test_a_stream_adds_up_to_the_answer(served):
    question = {"messages": ask("What?", image(png(2)), image(png(3))), "max_tokens": 40}
    whole = create(served, **question)
    chunks = list(create(served, **question, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_second_question_about_a_picture_is_cached(served):
    first = create(served, messages=ask("What is this?", image(png(4))))
    second = create(served, messages=ask("What colour?", image(png(4))))
    other = create(served, messages=ask("What colour?", image(png(5))))
    details = [answer.usage.prompt_tokens_details for answer in (first, second, other)]
    assert details[0].visual_tokens <= details[1].cached_tokens < second.usage.prompt_tokens
    assert details[2].cached_tokens < details[1].cached_tokens


def test_pdfs_videos_and_several_pictures_are_what_encode_makes_of_them(served, files):
    parts = [
        image(files["wide"]),
        {"type": "file", "file": {"file_data": uri(files["pdf"], "application/pdf"), "filename": "a.pdf"}},
        {"type": "video_url", "video_url": {"url": uri(files["film"], "video/mp4")}},
        image(files["png"]),
    ]
    model, service = served.service.models["tiny"], served.service
    said = read_messages(ask("What?", *parts), service.settings.media, 9)

    async def features():
        prompt = await prepare(model, said, service.opener, "test")
        return await service.opener.features("tiny", prompt.laid, prompt.opened, "test")

    # On the server's own loop, because its processes belong to it.
    made = on_loop(served, features())
    media = [files[name] for name in ("wide", "pdf", "film", "png")]
    content = [{"type": "image", "image": one} for one in media]
    sample = to_sample([{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}])
    own = encode(sample, model.processor, prompt=True)
    assert torch.equal(made.ids, own.ids)
    assert torch.equal(made.tiles, own.tiles)
    assert made.layouts == own.layouts
    answer = create(served, messages=ask("What?", *parts))
    assert answer.usage.prompt_tokens == len(own)


def on_loop(served: Running, job):
    return asyncio.run_coroutine_threadsafe(job, served.service.loop).result(30)


def test_input_video_and_plain_base64(served, files):
    import base64

    plain = base64.b64encode(files["film"]).decode()
    one = create(served, messages=ask("What?", {"type": "input_video", "input_video": {"data": plain}}))
    part = {"type": "video_url", "video_url": {"url": uri(files["film"])}}
    assert one.choices[0].message.content == create(served, messages=ask("What?", part)).choices[0].message.content


def test_n_answers_stop_texts_and_seeds(served):
    question = {"messages": ask("What?", image(png(1))), "max_tokens": 30}
    text = create(served, **question).choices[0].message.content
    mark = next(char for char in text[5:] if char.isprintable() and char != "\ufffd")
    stopped = create(served, **question, stop=[mark])
    assert stopped.choices[0].message.content == text[: text.index(mark)].rstrip()
    assert stopped.choices[0].finish_reason == "stop"
    hot = {**question, "temperature": 1.5, "n": 3, "seed": 7}
    texts = [choice.message.content for choice in create(served, **hot).choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in create(served, **hot).choices]
    streamed = ["", "", ""]
    for chunk in create(served, **hot, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_logprobs_are_of_the_tokens(served):
    question = {"messages": ask("What?", image(png(1))), "logprobs": True, "top_logprobs": 3}
    answer = create(served, **question)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)  # greedy
        assert token.logprob < 0
    streamed = [t for chunk in create(served, **question, stream=True) for t in tokens_of(chunk)]
    assert [(token.token, token.logprob) for token in streamed] == [(token.token, token.logprob) for token in tokens]
    assert create(served, messages=ask("What?")).choices[0].logprobs is None


def tokens_of(chunk):
    return chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []


def test_structured_output_is_what_the_schema_says(served):
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "maximum": 99}, "paid": {"type": "boolean"}},
        "required": ["sum", "paid"],
        "additionalProperties": False,
    }
    style = {"type": "json_schema", "json_schema": {"name": "bill", "schema": schema, "strict": True}}
    answer = create(served, messages=ask("How much?", image(png(1))), response_format=style, max_tokens=200)
    said = json.loads(answer.choices[0].message.content)
    assert type(said["sum"]) is int
    assert said["sum"] <= 99
    assert type(said["paid"]) is bool


def test_special_tokens_in_a_text_are_text(served):
    plain = create(served, messages=ask("x")).usage.prompt_tokens
    for mark in ("<|im_end|>", "<|im_start|>", "</s>", "<image>"):
        # One token a byte, since the tokenizer has no merges; the mark itself would be one token.
        assert create(served, messages=ask("x" + mark)).usage.prompt_tokens == plain + len(mark)


def test_history_and_system_texts_count(served):
    messages = [{"role": "developer", "content": "Be brief."}, *ask("What?"), {"role": "assistant", "content": "Ink."}]
    longer = create(served, messages=[*messages, *ask("Sure?")])
    assert longer.usage.prompt_tokens > create(served, messages=ask("Sure?")).usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="aren't continued"):
        create(served, messages=messages)


def test_sixty_four_at_once_get_their_own_answers(served):
    questions = [ask(f"Number {i}?", *([image(png(i % 5))] if i % 3 else [])) for i in range(64)]
    alone = [create(served, messages=question).choices[0].message.content for question in questions]
    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        together = list(threads.map(lambda question: streamed_text(served, question), questions))
    assert together == alone


def streamed_text(served: Running, messages) -> str:
    chunks = create(served, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_pixels_of_many_requests_wait_for_room():
    async def scenario() -> None:
        room, order = Room(10, 2), []

        async def one(name: str, size: int) -> None:
            await room.take(size)
            order.append(name)

        await one("a", 6)
        big = asyncio.ensure_future(one("big", 20))
        small = asyncio.ensure_future(one("small", 1))
        await asyncio.sleep(0)
        assert order == ["a"]  # the small one doesn't overtake the big one, which waits for all of it
        with pytest.raises(ApiError, match="too many pictures wait"):
            await room.take(1)
        room.give(6)
        await big
        assert order == ["a", "big"]
        small.cancel()
        await asyncio.gather(small, return_exceptions=True)
        room.give(20)
        assert room.held == 0
        await one("last", 10)
        late = asyncio.ensure_future(one("late", 1))
        await asyncio.sleep(0)
        room.give(10)
        late.cancel()  # in the same moment as its turn comes
        await asyncio.gather(late, return_exceptions=True)
        assert room.held == 0

    asyncio.run(scenario())


# the other paths


def test_responses(served):
    given = {"model": "tiny", "instructions": "Be brief.", "max_output_tokens": 8}
    part = {"type": "input_image", "image_url": uri(png(1)), "detail": "auto"}
    messages = [{"role": "user", "content": [part, {"type": "input_text", "text": "What?"}]}]
    answer = served.client().responses.create(**given, input=messages)
    system = {"role": "system", "content": "Be brief."}
    same = create(served, messages=[system, *ask("What?", image(png(1)))])
    assert answer.output_text == same.choices[0].message.content
    assert answer.usage.input_tokens == same.usage.prompt_tokens
    assert answer.status == {"stop": "completed", "length": "incomplete"}[same.choices[0].finish_reason]
    with served.client().responses.stream(**given, input=messages) as stream:
        events = list(stream)
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == answer.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert served.client().responses.create(**given, input="Hello").output_text is not None
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        served.client().responses.create(**given, input="x", previous_response_id="resp_1")


def test_responses_with_a_schema(served):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    style = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    answer = served.client().responses.create(model="tiny", input="Well?", text=style, max_output_tokens=60)
    assert set(json.loads(answer.output_text)) == {"a"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": "word " * 2000}, "input"),
        ({"input": "x", "max_output_tokens": 5000}, "input"),
        ({"input": "x", "text": {"format": {"type": "json_object", "a": 1}}}, "text.format.a"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "b"}}}}, "text.format"),
    ],
)
def test_errors_of_responses_name_their_own_fields(served, given, param):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().responses.create(model="tiny", **given)
    assert caught.value.param == param
    assert caught.value.body["message"].startswith(f"{param}: ")


def test_models(served):
    found = served.client().models.list().data
    assert [model.id for model in found] == ["tiny", "other"]
    assert found[0].model_extra["evidence"] is True
    assert found[0].model_extra["max_tokens"] == 1024
    assert served.client().models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError, match="this server has tiny, other"):
        served.client().models.retrieve("third")
    with pytest.raises(openai.NotFoundError):
        create(served, model="third", messages=ask("x"))


def test_tokenize_counts_before_anything_is_decoded(served, files):
    parts = [image(files["wide"]), {"type": "file", "file": {"file_data": uri(files["pdf"])}}, image(files["film"])]
    body = {"model": "tiny", "messages": ask("What?", *parts)}
    said = post(served, "/tokenize", json=body).json()
    usage = create(served, messages=body["messages"]).usage
    assert said["count"] == said["prompt_tokens"] == usage.prompt_tokens
    assert said["visual_tokens"] == usage.prompt_tokens_details.visual_tokens
    assert said["visual_tokens"] == sum(medium["tokens"] for medium in said["media"])
    assert [(m["kind"], m["message"], m["part"], m["page"]) for m in said["media"]] == [
        ("image", 0, 0, 0), ("page", 0, 1, 0), ("page", 0, 1, 1), ("video", 0, 2, 0),
    ]  # fmt: skip
    wide = said["media"][0]
    assert wide["size"] == [90, 30]
    assert wide["tiles"]["cols"] * wide["tiles"]["rows"] + wide["tiles"]["overview"] == wide["views"]
    assert said["media"][3]["frames"] == said["media"][3]["views"] > 1
    times = said["media"][3]["times"]
    assert len(times) == said["media"][3]["frames"]
    assert times == sorted(times)


def test_previews_are_the_pages_in_small(served, files):
    import base64
    import io

    from PIL import Image

    parts = [image(files["wide"]), {"type": "file", "file": {"file_data": uri(files["pdf"])}}, image(files["film"])]
    found = post(served, "/v1/previews", json={"messages": ask("", *parts)}).json()["pages"]
    assert [(one["message"], one["part"], one["page"]) for one in found] == [(0, 1, 0), (0, 1, 1)]
    shown = [Image.open(io.BytesIO(base64.b64decode(one["image"].partition(",")[2]))) for one in found]
    assert [picture.size for picture in shown] == [(448, 224), (224, 448)]
    assert shown[0].convert("L").getextrema()[0] < 200  # something is printed on it
    assert post(served, "/v1/previews", json={"messages": ask("x")}).json() == {"pages": []}


def test_a_long_prompt_is_refused_with_its_counts_before_a_pixel_is_decoded(served):
    cut = png(1, (56, 56))[:-40]  # its header is whole: decoding it would fail
    body = ask("x" * 1500, image(cut))
    said = post(served, "/v1/chat/completions", json={"model": "tiny", "messages": body}).json()["error"]
    assert said["code"] == "context_length_exceeded"
    assert re.search(r"have 15\d\d tokens and the answer up to 512; the model takes 1024", said["message"])


def test_evidence_is_the_assistants_own(served, assistant, files):
    parts = [image(files["wide"]), {"type": "file", "file": {"file_data": uri(files["pdf"])}}, image(files["film"])]
    body = {"model": "tiny", "messages": ask("What?", *parts), "answer": " an answer\n"}
    said = post(served, "/v1/evidence", json=body).json()["regions"]
    media = [{"type": "image", "image": files[name]} for name in ("wide", "pdf", "film")]
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": "What?"}]}]
    own = evidence(assistant, messages, "an answer")
    assert [(one["media"], one.get("frame")) for one in said] == [(one.media, one.frame) for one in own]
    for one, expected in zip(said, own, strict=True):
        assert one["box"] == pytest.approx(expected.box, abs=1e-4)
        assert one["weight"] == pytest.approx(expected.weight, abs=1e-4)
    assert sum(one["weight"] for one in said) == pytest.approx(1, abs=1e-3)
    assert post(served, "/v1/evidence", json=body | {"messages": ask("x")}).json() == {"regions": []}


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"answer": " "}, "answer", "invalid_value"),
        ({"answer": 3}, "answer", "invalid_value"),
        ({"answer": "x" * 1200}, "messages", "context_length_exceeded"),
        ({"answer": "x" * 10**6}, "messages", "context_length_exceeded"),
        ({"model": "third"}, "model", "model_not_found"),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
    ],
)
def test_evidence_that_is_refused(given, param, code, served):
    body = {"model": "tiny", "messages": ask("x", image(png(1))), "answer": "y"}
    error = post(served, "/v1/evidence", json=body | given).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_many_ask_for_evidence_at_once(served):
    def one(seed: int) -> int:
        body = {"model": "tiny", "messages": ask("x", image(png(seed))), "answer": "y" * 20}
        return post(served, "/v1/evidence", json=body).status_code

    with concurrent.futures.ThreadPoolExecutor(30) as threads:
        found = list(threads.map(one, range(30)))
    assert set(found) <= {200, 429}
    assert found.count(200) >= 10
    assert served.service.finder.working == 0


def test_health_ready_and_the_page(served):
    assert httpx.get(served.url + "/health").json() == {"status": "ok"}
    assert httpx.get(served.url + "/ready").json()["status"] == "ready"
    page = httpx.get(served.url + "/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for path in ("/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/README.md", "//etc/passwd"):
        assert httpx.get(served.url + path).status_code == 404


# errors


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 9}, "n", "at most 8"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", "differs"),
        ({"stop": [""]}, "stop", "1 to 256 characters"),
        ({"stop": [1]}, "stop[0]", "valid string"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "isn't supported"),
        ({"tools": [{"type": "function"}]}, "tools", "isn't supported"),
        ({"colour": "red"}, "colour", "isn't known"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "expected text"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "expected a JSON schema"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [7]}, "messages[0]", "expected an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "expected one of system"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "a text or a list"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages[0].name", "isn't supported"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type", "text, "),
        ({"messages": ask("x", {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}})},
         "messages[0].content[0].image_url.detail", "layout decides"),
        ({"messages": ask("\ud800")}, None, "isn't"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(served, given, param, words):
    body = {"model": "tiny", "messages": ask("x"), **given}
    answer = post(served, "/v1/chat/completions", content=json.dumps(body), headers=JSON)
    said = answer.json()["error"]
    assert answer.status_code == 400
    assert said["type"] == "invalid_request_error"
    assert param is None or said["param"] == param
    assert words in said["message"]


JSON = {"content-type": "application/json"}


def test_what_says_nothing_passes(served):
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "x", "name": None, "tool_calls": []}],
        "max_tokens": 2, "frequency_penalty": 0, "presence_penalty": 0.0, "tools": [], "tool_choice": None,
        "logit_bias": {}, "user": "me", "metadata": {"a": "b"}, "store": False, "response_format": {"type": "text"},
        "stop": None, "seed": None, "n": None,
    }  # fmt: skip
    assert post(served, "/v1/chat/completions", json=body).status_code == 200
    assert post(served, "/v1/chat/completions", json={**body, "store": True}).json()["error"]["param"] == "store"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "tiny"', b"\xff\xfe", b"[" * 100_000, b"7"])
def test_bodies_that_are_no_requests(served, body):
    answer = post(served, "/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_methods_types_and_paths(served):
    assert httpx.get(served.url + "/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"
    assert post(served, "/v1/nothing", json={}).json()["error"]["code"] == "not_found"
    assert post(served, "/v1/chat/completions", content="{}").status_code == 415
    assert (
        post(served, "/v1/chat/completions", content="{}", headers={**JSON, "content-encoding": "gzip"}).status_code
        == 415
    )


# who asks


def keys(**limits) -> Keys:
    return Keys(
        [Caller("a", hashlib.sha256(b"pm-a").hexdigest(), **limits), Caller("b", hashlib.sha256(b"pm-b").hexdigest())]
    )


def test_only_known_keys_may_ask(assistant):
    with running(assistant, keys=keys()) as served:
        given = {"model": "tiny", "messages": ask("x"), "max_tokens": 2}
        for wrong in ("pm-c", "", "pm-a ", "pm-A", hashlib.sha256(b"pm-a").hexdigest()):
            answer = post(served, "/v1/chat/completions", json=given, headers={"authorization": f"Bearer {wrong}x"})
            assert answer.status_code == 401
        with pytest.raises(openai.AuthenticationError, match="an unknown API key"):
            served.client("pm-c").chat.completions.create(**given)
        assert httpx.get(served.url + "/v1/models").status_code == 401
        assert post(served, "/tokenize", json=given).json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(served.url + "/health").status_code == 200
        assert served.client("pm-a").chat.completions.create(**given).choices


def test_what_is_cached_for_one_key_is_not_for_another(assistant):
    with running(assistant, keys=keys()) as served:
        given = {"model": "tiny", "messages": ask("What?", image(png(1))), "max_tokens": 2}
        cached = [
            served.client(key).chat.completions.create(**given).usage.prompt_tokens_details.cached_tokens
            for key in ("pm-a", "pm-b", "pm-b")
        ]
        assert cached[:2] == [0, 0]
        assert cached[2] > 0


def test_rates_and_concurrency_are_limited_by_key(assistant):
    with running(assistant, keys=keys(requests_per_minute=2)) as served:
        given = {"model": "tiny", "messages": ask("x"), "max_tokens": 2}
        for _ in range(2):
            served.client("pm-a").chat.completions.create(**given)
        with pytest.raises(openai.RateLimitError) as caught:
            served.client("pm-a").chat.completions.create(**given)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 31
        assert served.client("pm-b").chat.completions.create(**given).choices
    with running(assistant, keys=keys(concurrent=1)) as served:
        served.pace[0] = 0.05
        slow = {"model": "tiny", "messages": ask("What?", image(png(1))), "max_tokens": 100, "stream": True}
        stream = served.client("pm-a").chat.completions.create(**slow)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            served.client("pm-a").chat.completions.create(**given)
        assert caught.value.code == "too_many_concurrent"
        stream.close()
        wait_until(served.idle)
        served.pace[0] = 0
        assert served.client("pm-a").chat.completions.create(**given).choices


# what is told about it


def test_request_ids_and_logs_without_a_word_of_what_was_said(served):
    secret = "SECRETWORD"
    body = {"model": "tiny", "messages": ask(secret, image(png(1))), "max_tokens": 4}
    answer = post(served, "/v1/chat/completions?q=" + secret, json=body, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    bad = post(served, f"/v1/{secret}", json=body, headers={"x-request-id": 'a" \t' + secret})
    assert re.fullmatch(r"req_[0-9a-f]{24}", bad.headers["x-request-id"])
    wait_until(lambda: any(line.get("id") == bad.headers["x-request-id"] for line in served.lines()))
    line = next(line for line in served.lines() if line.get("id") == "mine-1")
    assert line["path"] == "/v1/chat/completions"
    assert line["status"] == 200
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert line["completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert secret not in served.log.getvalue()
    assert answer.json()["choices"][0]["message"]["content"] not in served.log.getvalue()


def test_metrics(served):
    create(served, messages=ask("What?", image(png(1))))
    text = httpx.get(served.url + "/metrics").text
    for name in (
        'pumice_requests_total{path="/v1/chat/completions",status="200"}',
        'pumice_first_token_seconds_bucket{le="0.005",model="tiny"}',
        'pumice_inter_token_seconds_count{model="tiny"}',
        'pumice_tokens_total{kind="visual",model="tiny"}',
        'pumice_engine_waiting{model="tiny"}',
        'pumice_engine_picture_hits{model="tiny"}',
        "pumice_decode_processes_lost_total",
    ):
        assert name in text
    from prometheus_client.parser import text_string_to_metric_families

    assert sum(1 for _ in text_string_to_metric_families(text)) > 15
