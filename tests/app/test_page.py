"""The page: named endpoints that make the command line's pictures, a line for all that is wrong, nothing left over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omfa.app import __main__ as door
from omfa.app.guard import Guard
from omfa.app.studio import Stopped, Studio, cut_off
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.orders import Order, named_pose
from tests.app.conftest import standing
from tests.conftest import make_compact
from tests.test_main import hostile, run

EXAMPLES = Path(door.__file__).parent / "examples"
MAN, SHIRT = EXAMPLES / "man.jpg", EXAMPLES / "plaid_shirt.jpg"


@pytest.fixture
def client(url: str, tmp_path: Path) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False, download_files=str(tmp_path / "downloads"))


def file(path: Path | str) -> Any:
    from gradio_client import handle_file

    return handle_file(path)


def test_every_function_is_a_named_and_documented_endpoint(client: Any) -> None:
    api = client.view_api(return_format="dict")
    assert set(api["named_endpoints"]) == {"/try_on", "/take_off", "/transfer", "/turn_around"}
    assert not api["unnamed_endpoints"]
    for name, endpoint in api["named_endpoints"].items():
        names = [p["parameter_name"] for p in endpoint["parameters"]]
        assert {"photo", "seed", "steps", "guidance"} <= set(names) and "request" not in names, name
        assert endpoint["description"] and len(endpoint["returns"]) == 2


def test_an_endpoint_makes_the_picture_of_the_command_line(client: Any, studio: Studio, tmp_path: Path) -> None:
    studio.pipe.save_pretrained(tmp_path / "model")
    made, notes = client.predict(
        photo=file(MAN), upper=file(SHIRT), lower=None, dress=None, pose="waving", keep="nothing", seed=4, steps=2,
        api_name="/try_on",
    )  # fmt: skip
    named_pose("waving", (256, 192)).save(tmp_path / "waving.npz")
    words = ["--portrait", MAN, "--garment", f"upper={SHIRT}", "--keep", "nothing", "--pose", tmp_path / "waving.npz"]
    common = ["--model", tmp_path / "model", "--seed", 4, "--steps", 2, "-o", tmp_path]
    pytest.importorskip("mediapipe")  # the command line looks for a face
    assert run("try-on", *words, *common) == 0
    (one,) = made
    assert Path(one["image"]).name == "try_on.png" and notes == ""
    mine, theirs = (np.asarray(Image.open(p)) for p in (one["image"], tmp_path / "man_try_on.png"))
    assert mine.shape == theirs.shape
    views, _ = client.predict(photo=file(MAN), upper=file(SHIRT), lower=None, dress=None, views=3, steps=1,
                              api_name="/turn_around")  # fmt: skip
    assert [v["caption"] for v in views] == ["view 000", "view 120", "view 240"]
    worn, _ = client.predict(photo=file(MAN), categories=["upper", "lower"], steps=1, api_name="/take_off")
    assert [w["caption"] for w in worn] == ["garment upper", "garment lower"]
    (moved,), _ = client.predict(source=file(MAN), photo=file(EXAMPLES / "woman.jpg"), categories=["upper"], steps=1,
                                 api_name="/transfer")  # fmt: skip
    assert moved["caption"] == "transfer"


def refusal(client: Any, **values: Any) -> str:
    with pytest.raises(Exception) as caught:
        client.predict(api_name="/take_off", **{"categories": ["upper"], "steps": 1} | values)
    return str(caught.value)


def test_whatever_is_wrong_is_said_in_one_line(client: Any, tmp_path: Path) -> None:
    files = {n: p for n, p in hostile(tmp_path).items() if os.path.isfile(p) and p.stat().st_size}
    assert len(files) > 10
    for name, path in files.items():
        said = refusal(client, photo=file(path))
        assert len(said.splitlines()) == 1 and said.startswith("The photo: "), (name, said)
        assert "Traceback" not in said and "/" not in said.split("pixels")[0].replace("x", ""), (name, said)
    assert "Choose a photo" in refusal(client, photo=None)
    assert "a category" in refusal(client, photo=file(MAN), categories=[])
    for bad, told in (({"steps": 201}, "200"), ({"seed": -1}, "0")):  # the page's fields say it, or the order does
        said = refusal(client, photo=file(MAN), **bad)
        assert told in said and len(said.splitlines()) == 1


def test_nothing_is_fetched_for_a_visitor(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    sys.addaudithook(lambda event, args: event == "socket.getaddrinfo" and asked.append(args[0]))
    said = refusal(client, photo={"path": "http://example.com/a.png", "meta": {"_type": "gradio.FileData"}})
    assert "uploaded here, not fetched" in said
    assert "example.com" not in asked


def test_no_body_and_a_cut_one_are_told(client: Any, tmp_path: Path) -> None:
    Image.new("RGB", (96, 128), "grey").save(tmp_path / "grey.png")
    _, notes = client.predict(photo=file(tmp_path / "grey.png"), categories=["upper"], steps=1, api_name="/take_off")
    assert "draft" not in notes  # a model without drafts looks for no body
    with pytest.raises(Exception, match="nobody is seen"):
        client.predict(photo=file(tmp_path / "grey.png"), upper=file(SHIRT), lower=None, dress=None, api_name="/try_on")


def test_many_at_once_are_all_answered_in_turn(client: Any, studio: Studio) -> None:
    from gradio_client.utils import Status

    busy, most, begun = 0, 0, list[int]()
    make = studio.pipe.try_off

    def counted(*args: Any, generator: torch.Generator, **options: Any) -> Any:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        begun.append(generator.initial_seed())
        try:
            return make(*args, generator=generator, **options)
        finally:
            busy -= 1

    studio.pipe.try_off = counted  # type: ignore[method-assign]
    try:
        jobs = []
        for i in range(8):
            jobs.append(client.submit(photo=file(MAN), categories=["upper"], seed=i, steps=1, api_name="/take_off"))
            while jobs[-1].status().code in (Status.STARTING, Status.JOINING_QUEUE):  # until it stands in the queue
                time.sleep(0.01)
        made = [np.asarray(Image.open(job.result(timeout=300)[0][0]["image"])) for job in jobs]
    finally:
        del studio.pipe.try_off  # type: ignore[method-assign]
    assert most == 1 and begun == list(range(8)) and len({m.tobytes() for m in made}) == 8


# ---------------------------------------------------------------------------------------------------- behind the page


def order(**more: Any) -> Order:
    return Order(task="try-off", name="a", photo=Image.open(MAN), **more)


def test_steps_are_told_and_an_order_is_stopped(studio: Studio) -> None:
    steps: list[tuple[Any, ...]] = []
    stop = threading.Event()

    def watch(*step: Any) -> None:
        steps.append(step)
        if len(steps) == 3:
            stop.set()

    with pytest.raises(Stopped):
        studio.make(order(), steps=50, watch=watch, stop=stop)
    assert [doing for _, doing in steps] == [f"drawing, step {i} of 50" for i in (1, 2, 3)]
    assert 0.4 < steps[0][0] < steps[1][0] < steps[2][0] < 0.5
    assert studio.make(order(), steps=2).pictures.keys() == {"a_upper"}  # and the next one is made
    with pytest.raises(Stopped):  # before it began
        studio.make(order(), stop=stop)


def test_a_studio_that_is_closed_makes_no_more() -> None:
    ending = Studio(make_compact())
    with pytest.raises(Stopped):
        ending.make(order(), steps=50, watch=lambda *_: ending.close())
    with pytest.raises(Stopped):
        ending.make(order(), steps=1)


def test_one_order_at_a_time(studio: Studio) -> None:
    inside: list[int] = []

    def watch(*_: Any) -> None:
        inside.append(threading.get_ident())
        time.sleep(0.01)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: studio.make(order(), seed=seed, steps=4, watch=watch), range(3)))
    assert [len(set(inside[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]


def test_notes_of_bodies(studio: Studio) -> None:
    pipe = make_compact(join="rows", draft="surface")
    pipe.pose_estimator = standing
    drafted = Studio(pipe)
    told: list[Any] = []
    assert drafted.make(order(), steps=2, watch=lambda *doing: told.append(doing)).notes == []
    how_far, words = zip(*told, strict=True)
    assert words == ("looking for the body", "laying out the clothes", "drawing, step 1 of 2", "finishing")
    assert list(how_far) == sorted(how_far) and how_far[0] > 0 and how_far[-1] < 1
    (note,) = drafted.make(replace(order(), photo=Image.new("RGB", (96, 128), "grey")), steps=1).notes
    assert note.startswith("No body was found in the photo (nobody is seen)")
    whole = place(load_body(), NAMED_POSES["standing"], image_size=(400, 300))
    assert cut_off(whole) is None
    assert cut_off(replace(whole, image_size=(340, 300))) == "The photo cuts off the feet: what is not seen is a guess."
    low = cut_off(replace(whole, K=whole.K + np.array([[0, 0, 0], [0, 0, -150], [0, 0, 0]], np.float32)))
    assert low == "The photo cuts off the head: what is not seen is a guess."


def test_the_guard_bounds_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    def ask(method: str, path: str, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": named}
        asyncio.run(Guard(page, tmp_path)(scope, None, send))
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    code, headers, _ = ask("GET", "/")
    assert code == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert ask("POST", "/gradio_api/upload", content_length="1000")[0] == 200
    assert ask("POST", "/gradio_api/upload")[0] == 411
    code, _, words = ask("POST", "/gradio_api/upload", content_length=str(2**30))
    assert code == 413 and words == b"At most 64 MB at once."
    monkeypatch.setattr("omfa.app.guard.MOST_FILES", 3)
    for i in range(3):
        (tmp_path / f"{i}").write_bytes(b"1")
    assert ask("POST", "/gradio_api/upload", content_length="1000")[0] == 507
    assert ask("POST", "/gradio_api/queue/join", content_length="1000")[0] == 200


def test_what_a_kill_left_is_removed_and_a_second_page_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with door.own_folder(7001) as folder:
        base = folder.parent
        (base / "7002" / "deep").mkdir(parents=True)
        (base / "7002" / "deep" / "photo.png").write_bytes(b"left by a kill")
        (folder / "mine.png").write_bytes(b"in use")
        assert oct(base.stat().st_mode)[-3:] == "700"
    assert not list(folder.rglob("*.png"))
    holds = "import sys\nfrom pathlib import Path\nfrom omfa.files import sole\n"
    holds += "with sole(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holds, str(base / "7003")], stdin=-1, stdout=-1, text=True) as page:
        assert page.stdin is not None and page.stdout is not None and page.stdout.readline() == "held\n"
        (base / "7003" / "theirs.png").write_bytes(b"of a page at work")
        with door.own_folder(7002) as other:
            assert list(other.rglob("*.png")) == [] and (base / "7003" / "theirs.png").exists()
        with pytest.raises(ValueError, match="--port"), door.own_folder(7003):
            pass
        page.stdin.close()
        page.wait()
    with door.own_folder(7002):
        assert not (base / "7003" / "theirs.png").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "0"], "1 on"),
        (["--auth", "none.txt"], "none.txt"),
        (["--auth", "empty.txt"], "names nobody"),
        (["--auth", "bad.txt"], "line 2"),
        (["--device", "cuda"], "there is none here"),
        (["--model", "nowhere", "--port", "7999"], "nowhere"),
    ],
)
def test_wrong_calls_say_what_would_be_right(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is one")
    if "nowhere" in words:
        pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    Path("empty.txt").write_text("\n")
    Path("bad.txt").write_text("anna:secret\nben\n")
    try:
        code = door.main(words)
    except SystemExit as e:
        code = int(e.code or 0)
    errors = capsys.readouterr().err
    assert code == 2 and told in errors and len(errors.splitlines()) == 1 and "Traceback" not in errors, errors


def test_names_and_passwords_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("anna:se:cret\n\nben:b\n")
    assert door.visitors(tmp_path / "a.txt") == [("anna", "se:cret"), ("ben", "b")]
