"""A signature with a local key tells a forged certificate whose digests were made anew."""

import base64
import json
import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from finetune.export.statement import SECTIONS, digest_of_json

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def write_keys(folder, name, key=None, password=None):
    """Write a new pair of keys as `name.pem` and `name.pub`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    locked = serialization.NoEncryption()
    if password is not None:
        locked = serialization.BestAvailableEncryption(password)
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, PKCS8, locked))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture
def run(small_run, tmp_path_factory):
    """A run in a folder of its own."""
    trainer = small_run(str(tmp_path_factory.mktemp("trained") / "run"))
    trainer.fit(quiet=True)
    return trainer.folder.path


@pytest.fixture
def case(run, command_line, monkeypatch, tmp_path):
    """The current folder, with two pairs of keys and a signed certificate of the run."""
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path, "mine")
    write_keys(tmp_path, "other")
    done = command_line("certify", run, "--out", "c.json", "--sign", "mine.pem")
    assert done.code == 0, done.err
    assert "c.json.sig: signature by mine.pem" in done.err
    return tmp_path


def checked(command_line, key="mine.pub"):
    return command_line("certify", "--check", "c.json", "--public-key", key)


def test_a_signature_by_the_key_holds_and_a_check_without_the_key_says_so(case, command_line):
    done = checked(command_line)
    assert (done.code, done.out.splitlines()[-1]) == (0, "signature: by mine.pub")
    done = command_line("certify", "--check", "c.json")
    assert (done.code, done.out.splitlines()[-1]) == (0, "signature: not checked")
    told = command_line("certify", "--check", "c.json", "--public-key", "mine.pub", "--json")
    assert json.loads(told.out)["signed"] is True


def test_the_library_itself_verifies_the_signature(case):
    from model_signing import verifying

    verifier = verifying.Config().use_elliptic_key_verifier(public_key=case / "mine.pub")
    verifier.verify(case / "c.json", case / "c.json.sig")


def edited_with_all_digests(case):
    """Change a figure, and make all digests of the statement anew."""
    document = json.loads((case / "c.json").read_text())
    predicate = document["predicate"]
    predicate["versions"]["torch"] = "1.0"
    predicate["digests"] = {name: digest_of_json(predicate[name]) for name in SECTIONS}
    document["subject"][1]["digest"]["sha256"] = digest_of_json(predicate["digests"])
    (case / "c.json").write_text(json.dumps(document, indent=1) + "\n")


def another_key(case):
    (case / "mine.pub").write_bytes((case / "other.pub").read_bytes())


def no_signature(case):
    (case / "c.json.sig").unlink()


def changed_signature(case):
    bundle = json.loads((case / "c.json.sig").read_text())
    [one] = bundle["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(one["sig"]))
    raw[-1] ^= 1
    one["sig"] = base64.b64encode(raw).decode()
    (case / "c.json.sig").write_text(json.dumps(bundle))


def changed_payload(case):
    """Let the signed statement be of the edited file."""
    bundle = json.loads((case / "c.json.sig").read_text())
    envelope = bundle["dsseEnvelope"]
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"]) + b" ").decode()
    (case / "c.json.sig").write_text(json.dumps(bundle))


def no_json(case):
    (case / "c.json.sig").write_bytes(b"\xff\x00")


def test_the_signature_is_of_the_bytes_that_were_compared(case, command_line, monkeypatch):
    from finetune.export import certified_files

    signed, faults_within = (case / "c.json").read_bytes(), certified_files.faults_within

    def exchanged(certificate):
        (case / "c.json").write_bytes(signed)
        return faults_within(certificate)

    edited_with_all_digests(case)
    monkeypatch.setattr(certified_files, "faults_within", exchanged)
    done = checked(command_line)
    assert (done.code, "signature: is of another certificate" in done.out) == (2, True)


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (edited_with_all_digests, "is of another certificate"),
        (another_key, "is by another key"),
        (no_signature, "there is no file 'c.json.sig'"),
        (changed_signature, "is no signature by this key"),
        (changed_payload, "is no signature by this key"),
        (no_json, "is no signature by this key"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_forgery_is_told_by_the_signature(case, command_line, forge, told):
    forge(case)
    assert command_line("certify", "--check", "c.json").code == 0
    done = checked(command_line)
    assert done.code == 2
    assert f"signature: {told}" in done.out
    assert "certificate: 1 fault\n" in done.out


@pytest.mark.parametrize(
    ("make", "word", "told"),
    [
        (lambda f: (f / "k.pem").write_text("no key"), None, "is no key that can be used here"),
        (lambda f: None, None, "k.pem: No such file"),
        (lambda f: write_keys(f, "k", rsa.generate_private_key(65537, 2048)), None, "is no key"),
        (lambda f: write_keys(f, "k", ec.generate_private_key(ec.SECP256K1())), None, "is no key"),
        (lambda f: write_keys(f, "k", password=b"word"), None, "needs a password"),
        (lambda f: write_keys(f, "k", password=b"word"), "other", "the password is wrong"),
        (lambda f: write_keys(f, "k"), "other", "has no password, and FINETUNE_KEY_PASSWORD is"),
    ],
    ids=["text", "missing", "RSA", "curve", "locked", "wrong password", "not locked"],
)
def test_a_key_that_cannot_sign_costs_no_certificate(
    case, run, command_line, monkeypatch, make, word, told
):
    make(case)
    if word is not None:
        monkeypatch.setenv("FINETUNE_KEY_PASSWORD", word)
    done = command_line("certify", run, "--out", "new.json", "--sign", "k.pem")
    assert (done.code, told in done.err) == (2, True), done.err
    assert not list(case.glob("new.json*"))


def test_a_key_with_a_password_signs(case, run, command_line, monkeypatch):
    # A byte that is no UTF-8, as a terminal of another encoding gives it.
    write_keys(case, "k", password=b"xyzzy-\xe9")
    monkeypatch.setenv("FINETUNE_KEY_PASSWORD", os.fsdecode(b"xyzzy-\xe9"))
    done = command_line("certify", run, "--out", "c.json", "--sign", "k.pem")
    assert done.code == 0, done.err
    written = [(case / name).read_text() for name in ("c.json", "c.json.sig")]
    assert not any("xyzzy" in text for text in (done.out, done.err, *written))
    assert checked(command_line, "k.pub").code == 0


def test_a_certificate_and_a_signature_that_are_links_are_checked(case, command_line):
    (case / "kept").mkdir()
    for name in ("c.json", "c.json.sig"):
        (case / name).rename(case / "kept" / name)
        (case / name).symlink_to(case / "kept" / name)
    done = checked(command_line)
    assert (done.code, done.out.splitlines()[-1]) == (0, "signature: by mine.pub")


def large(path):
    path.touch()
    os.truncate(path, (64 << 20) + 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "is a pipe, not a file"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (large, "holds more than 64 MiB"),
    ],
    ids=["pipe", "folder", "device", "loop", "large"],
)
def test_a_signature_that_is_no_file_of_usual_size_is_a_fault(case, command_line, make, told):
    (case / "c.json.sig").unlink()
    make(case / "c.json.sig")
    done = checked(command_line)
    assert (done.code, told in done.out) == (2, True), done.out
    assert "certificate: 1 fault\n" in done.out


def test_a_name_to_which_the_ending_is_too_long_is_no_error(case, run, command_line):
    name = "c" * 248 + ".json"
    done = command_line("certify", run, "--out", name)
    assert (done.code, ".sig" in done.err) == (0, False), done.err
    done = command_line("certify", "--check", name, "--public-key", "mine.pub")
    assert (done.code, "File name too long" in done.out) == (2, True), done.out


def test_a_name_that_is_no_utf8_is_signed_and_checked(case, run, command_line):
    name = os.fsdecode(b"c\xe9.json")
    assert command_line("certify", run, "--out", name, "--sign", "mine.pem").code == 0
    assert command_line("certify", "--check", name, "--public-key", "mine.pub").code == 0


def test_what_is_no_signature_is_not_replaced(case, run, command_line):
    (case / "new.json.sig").write_text("mine")
    done = command_line("certify", run, "--out", "new.json", "--sign", "mine.pem")
    assert (done.code, "is there already, and is no signature" in done.err) == (2, True)
    assert (case / "new.json.sig").read_text() == "mine"


def test_a_signature_that_a_new_certificate_leaves_behind_is_told(case, run, command_line):
    # The same bytes once more: the signature still holds.
    done = command_line("certify", run, "--out", "c.json")
    assert (done.code, "c.json.sig" in done.err) == (0, False)
    assert checked(command_line).code == 0
    (case / "c.json").write_text((case / "c.json").read_text() + " ")
    done = command_line("certify", run, "--out", "c.json")
    assert done.code == 0
    assert "c.json.sig: is older than this certificate; --sign KEY signs it" in done.err


def test_options_of_the_other_direction_are_refused(case, command_line):
    done = command_line("certify", "--check", "c.json", "--sign", "mine.pem")
    assert (done.code, "--sign: has no effect with --check" in done.err) == (2, True)
    done = command_line("certify", "x", "--out", "d.json", "--public-key", "mine.pub")
    assert (done.code, "--public-key: has an effect only with --check" in done.err) == (2, True)
