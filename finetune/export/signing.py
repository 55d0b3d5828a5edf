"""Sign a certificate with a local key, and check such a signature, by the library model-signing.

A signature is a file beside the certificate, in the form of a Sigstore bundle. Nothing here uses
a network: sigstore's own service is not asked.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from finetune.disk import open_to_read, reason_of
from finetune.errors import FinetuneError
from finetune.importing import require
from finetune.reading import MAX_JSON_BYTES, read_at_most

BEGINNING = b'{"mediaType":"application/vnd.dev.sigstore.bundle'
"""First bytes of each signature that is written here."""
PASSWORD = "FINETUNE_KEY_PASSWORD"
"""Environment variable that holds the password of a private key."""
_KEYS = (
    "a key is a PEM file of an elliptic curve (P-256, P-384, P-521): "
    "openssl ecparam -name prime256v1 -genkey -noout"
)


def signature_place(certificate: Path) -> Path:
    """Return the file that holds the signature of a certificate: with `.sig` behind its name."""
    return certificate.with_name(f"{certificate.name}.sig")


def signature_of(text: str, private_key: Path) -> str:
    """Return the signature of a certificate.

    Args:
        text: The certificate.
        private_key: The key, a PEM file.

    Raises:
        FinetuneError: the key cannot be read or is of another kind, the library is missing, or
            the folder for temporary files cannot be written.
    """
    config = require("model_signing.signing", extra="sign").Config()
    # Not by an option, which would show it in the list of processes.
    word = os.environ.get(PASSWORD)
    try:
        signer = config.use_elliptic_key_signer(
            private_key=private_key, password=os.fsencode(word) if word else None
        )
    except OSError as error:
        raise FinetuneError(reason_of(error), where=str(private_key)) from error
    except Exception as error:  # the library lets errors of others through
        raise _unfit(private_key, error) from error
    with _copy_of(text.encode("utf-8"), "--sign") as file:
        signature = signature_place(file)
        signer.sign(file, signature)
        return signature.read_text(encoding="utf-8")


def fault_of_signature(raw: bytes, certificate: Path, public_key: Path) -> str | None:
    """Return why a certificate is not signed by a key; None if the signature beside it holds.

    A signature that is missing or cannot be read is such a reason, too.

    Args:
        raw: The bytes of the certificate.
        certificate: Its file, which is not read again.
        public_key: The key of whom it should be by, a PEM file.

    Raises:
        FinetuneError: the key cannot be read or is of another kind, or the library is missing.
    """
    config = require("model_signing.verifying", extra="sign").Config()
    try:
        verifier = config.use_elliptic_key_verifier(public_key=public_key)
    except OSError as error:
        raise FinetuneError(reason_of(error), where=str(public_key)) from error
    except Exception as error:  # the library lets errors of others through
        raise _unfit(public_key, error) from error
    place = signature_place(certificate)
    # A link may be kept in place of the signature; the library follows none.
    signature = Path(os.path.realpath(place))
    with _copy_of(raw, "--check") as copy:
        return _fault_of(partial(verifier.verify, copy, signature), signature, place)


@contextmanager
def _copy_of(raw: bytes, option: str) -> Iterator[Path]:
    """Yield a certificate as a file of its own, which the library reads.

    Raises:
        FinetuneError: the folder for temporary files cannot be used; `option` asked for it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A signature tells this name, and a check does not ask for it.
            file = Path(folder, "certificate.json")
            file.write_bytes(raw)
            yield file
    except OSError as error:
        reason = f"cannot use the temporary folder: {reason_of(error)}"
        raise FinetuneError(reason, where=option) from error


def _fault_of(verify: Callable[[], object], signature: Path, place: Path) -> str | None:
    """Return why `verify` does not accept a signature, whose name is `place`; None if it does."""
    try:
        with open_to_read(signature) as file:
            # Before the library, which would read all of a file, however large a stranger made it.
            if len(read_at_most(file, MAX_JSON_BYTES)) > MAX_JSON_BYTES:
                return f"{str(place)!r} holds more than {MAX_JSON_BYTES >> 20} MiB"
        verify()
    except FileNotFoundError:
        return f"there is no file {str(place)!r}"
    except OSError as error:
        return f"{str(place)!r} cannot be read: {reason_of(error)}"
    except Exception as error:  # noqa: BLE001 - whatever a forged file raises is no signature
        return _why(error)
    return None


def _unfit(key: Path, error: Exception) -> FinetuneError:
    """Return the error for a key that cannot be used."""
    text = str(error)
    # Told apart by their texts: errors of several libraries come here, whose types say less.
    if "not encrypted" in text:
        return FinetuneError(
            f"has no password, and {PASSWORD} is set", where=str(key), hint=f"unset {PASSWORD}"
        )
    if "assword" in text:
        reason = "the password is wrong" if os.environ.get(PASSWORD) else "needs a password"
        return FinetuneError(reason, where=str(key), hint=f"set {PASSWORD} to it")
    return FinetuneError("is no key that can be used here", where=str(key), hint=_KEYS)


def _why(error: Exception) -> str:
    """Return in words why a signature does not hold."""
    text = str(error)
    if "Key mismatch" in text:
        return "is by another key"
    if "Signature mismatch" in text:
        return "is of another certificate"
    return "is no signature by this key"
