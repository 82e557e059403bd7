"""Proxies, addresses, certificates, an old Python, a `.env` of another editor: the programs as a user starts them."""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dreambooth.environment import bypassing_proxies, load_settings
from tests.harness.open_page import free_port

ROOT = Path(__file__).resolve().parent.parent
DEAD = "127.0.0.1:9"
TOKEN = "hf_" + "TokenThatNoHubKnowsAtAll1234"


def done(command: list[str], folder: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a folder to its end."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (["--port", "99999"], {}, "port: must be a number from 1 to 65535, not 99999."),
        (["--port", "0"], {}, "port: must be a number from 1 to 65535, not 0."),
        ([], {"SSL_CERT_FILE": "/nowhere/ca.pem"}, 'SSL_CERT_FILE: "/nowhere/ca.pem" cannot be read: No such file'),
        ([], {"SSL_CERT_FILE": str(ROOT / "README.md")}, 'README.md" holds no certificates that can be read.'),
        ([], {"HF_ENDPOINT": "https://[hf-mirror"}, "HF_ENDPOINT: must be an address such as https://huggingface.co"),
        ([], {"DREAMBOOTH_PORT": "1" * 5000}, "DREAMBOOTH_PORT: must be a number from 1 to 65535"),
        ([], {"DREAMBOOTH_HOME": "~nobody-here/studio"}, 'DREAMBOOTH_HOME: is "~nobody-here/studio": there is no such'),
        ([], {"DREAMBOOTH_DRIVE": "~nobody-here/studio"}, "of DREAMBOOTH_DRIVE is not there."),
        (["--host", "203.0.113.1", "--auth"], {}, "Choose another one with --host."),
        ([], {"HF_ENDPOINT": "hf-mirror.example"}, "HF_ENDPOINT: must be an address such as https://huggingface.co"),
    ],
    ids=[
        "port 99999",
        "port 0",
        "no certificates",
        "README as certificates",
        "an endpoint with a bracket",
        "a long port",
        "no home",
        "no home for a Drive",
        "no own address",
        "an endpoint without scheme",
    ],  # fmt: skip
)
def test_a_wrong_environment_is_told_in_a_sentence(
    arguments: list[str], env: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    told = done([str(ROOT / "app.py"), *arguments], tmp_path, **env)
    assert told.returncode == 1
    assert sentence in told.stderr
    assert "Traceback" not in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize(
    ("host", "shown", "env"),
    [
        ("127.0.0.1", "127.0.0.1", {"HTTP_PROXY": f"http://{DEAD}", "HTTPS_PROXY": f"http://{DEAD}"}),
        ("::1", "[::1]", {"ALL_PROXY": f"socks5://{DEAD}"}),
        ("::", "[::1]", {"DREAMBOOTH_AUTH": "ann:password-of-the-page", "all_proxy": f"socks5://{DEAD}"}),
    ],
    ids=["dead proxy", "::1 and SOCKS", ":: and SOCKS"],
)
def test_the_page_opens_on_its_own_addresses_whatever_the_proxies(
    host: str, shown: str, env: dict[str, str], tmp_path: Path
) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--host", host, "--port", str(port)], cwd=tmp_path,
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    printed = "".join(iter(process.stdout.readline, "\n")) + process.stdout.readline()
    assert f"The page is open at http://{shown}:{port}/" in printed, process.stderr.read()
    # Whoever read the address may go.
    process.stdout.close()
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{shown}:{port}/").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_notebooks_page_without_a_public_link_names_no_address_that_nobody_can_open(tmp_path: Path) -> None:
    arguments = [str(ROOT / "app.py"), "--port", str(free_port())]
    told = done(arguments, tmp_path, COLAB_RELEASE_TAG="release", HTTPS_PROXY=f"http://{DEAD}")
    assert told.returncode == 1
    assert "error: No public link could be made.\nA notebook's page can be opened through one only.\n" in told.stderr
    assert "open at" not in told.stdout
    assert "Traceback" not in told.stderr


def test_a_proxy_that_cannot_be_used_is_named_where_others_are_asked(tmp_path: Path) -> None:
    request = ["generate", "--model", "somebody/something", "--prompt", "x", "--output_dir", str(tmp_path / "out")]
    told = done(["-m", "dreambooth", *request], tmp_path, ALL_PROXY=f"socks5://{DEAD}", HF_HUB_OFFLINE="0")
    assert told.returncode == 1
    assert "socks" in told.stderr.lower()
    assert "Traceback" not in told.stderr


def test_bypassed_proxies_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with bypassing_proxies(["localhost", "::1"]):
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "localhost,::1,intranet.example"
    assert os.environ["no_proxy"] == "intranet.example"
    assert os.name == "nt" or "NO_PROXY" not in os.environ


# The files of settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_dotenv_of_powershell_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DREAMBOOTH_HOME={tmp_path / 'data'}\n", encoding)
    assert done(["-m", "dreambooth", "clean"], tmp_path, DREAMBOOTH_HOME="").returncode == 0
    assert (tmp_path / "data").is_dir()


def test_a_dotenv_in_no_known_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("DREAMBOOTH_HOME=Büro\n".encode("cp1252"))
    told = done(["-m", "dreambooth", "clean"], tmp_path)
    assert told.returncode == 1
    assert told.stderr.startswith('error: ".env" cannot be read.\nLine 1 has the byte 0xFC')
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{TOKEN[:20]}\n{TOKEN[20:]}", "more than one line"),
        (f'"{TOKEN}"', "quotation marks"),
        (f"Bearer {TOKEN}", 'begins with "Bearer"'),
        (f"{TOKEN} # of my account", "a comment"),
        (f"{TOKEN} x", "a space or a character"),
        (f"\u200b{TOKEN}", "a space or a character"),
    ],
    ids=["line break", "quotes", "Bearer", "comment", "space", "hidden character"],
)
def test_a_token_of_a_wrong_form_is_refused_without_repeating_it(text: str, reason: str, tmp_path: Path) -> None:
    for command in (["-m", "dreambooth", "doctor"], [str(ROOT / "app.py")]):
        told = done(command, tmp_path, HF_TOKEN=text)
        assert told.returncode == 1
        assert "HF_TOKEN: " in told.stderr
        assert reason in told.stderr
        assert "Traceback" not in told.stderr
        assert not re.search(f"{TOKEN[:12]}|{TOKEN[-8:]}", told.stdout + told.stderr)


def test_no_complaint_of_a_client_repeats_a_token_with_a_line_break(tmp_path: Path) -> None:
    """From Python a token comes past the environment; HTTP clients show a header that they refuse, escaped."""
    code = (
        "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\n"
        "from dreambooth.errors import hide_in_tracebacks\nfrom dreambooth.environment import Secret\n"
        f"hide_in_tracebacks()\ntoken = Secret({TOKEN!r} + chr(10) + {TOKEN!r})\nimport httpx\n"
        "address = 'http://127.0.0.1:%d' % listener.getsockname()[1]\n"
        "httpx.get(address, headers={'authorization': 'Bearer ' + token.reveal()}, trust_env=False)\n"
    )
    told = done(["-c", code], tmp_path)
    assert "LocalProtocolError" in told.stderr
    assert not re.search(f"{TOKEN[:12]}|{TOKEN[-8:]}", told.stdout + told.stderr)


def test_dotenv_sets_what_libraries_read_of_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_ENDPOINT", "GRADIO_ROOT_PATH"):
        monkeypatch.setenv(name, "")
    (tmp_path / ".env").write_text("HF_ENDPOINT=https://mirror.example\nGRADIO_ROOT_PATH=/studio\n")
    load_settings()
    assert (os.environ["HF_ENDPOINT"], os.environ["GRADIO_ROOT_PATH"]) == ("https://mirror.example", "/studio")


def test_the_documents_and_the_example_name_the_same_variables() -> None:
    table = (ROOT / "docs" / "settings.md").read_text("utf-8").split("## Set the environment")[1]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert documented == set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert documented >= {"DREAMBOOTH_NAMES", "GRADIO_ROOT_PATH", "HF_ENDPOINT"}


# An old Python -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["runpy.run_path('app.py', run_name='__main__')", "runpy.run_module('dreambooth')"])
def test_python_3_10_is_told_what_is_needed(program: str) -> None:
    code = f"import runpy, sys\nsys.version_info = (3, 10, 13, 'final', 0)\nsys.argv = ['x']\n{program}"
    told = done(["-c", code], ROOT)
    assert told.returncode == 1
    assert told.stderr == "DreamBooth Studio needs Python 3.11, 3.12 or 3.13; this is 3.10.\n"


@pytest.mark.parametrize("name", ["app.py", "dreambooth/__init__.py", "dreambooth/__main__.py"])
def test_python_3_10_understands_what_is_run_first(name: str) -> None:
    ast.parse((ROOT / name).read_text("utf-8"), name, feature_version=(3, 10))
