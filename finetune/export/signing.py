"""Sign a certificate with a local key, and check such a signature, by the library model-signing.

A signature is a file beside the certificate, in the form of a Sigstore bundle. Nothing here uses
a network: sigstore's own service is not asked.
"""

import os
import tempfile
from pathlib import Path

from finetune.disk import reason_of
from finetune.errors import FinetuneError
from finetune.importing import require

BEGINNING = b'{"mediaType":"application/vnd.dev.sigstore.bundle'
"""First bytes of each signature that is written here."""
PASSWORD = "FINETUNE_KEY_PASSWORD"
"""Environment variable that holds the password of a private key."""
_KEYS = "a key is a PEM file of an elliptic curve (P-256, P-384, P-521): openssl ecparam -genkey"


def signature_place(certificate: Path) -> Path:
    """Return the file that holds the signature of a certificate: with `.sig` behind its name."""
    return certificate.with_name(f"{certificate.name}.sig")


def signature_of(text: str, name: str, private_key: Path) -> str:
    """Return the signature of a certificate.

    Args:
        text: The certificate.
        name: Name of its file; the signature tells it, and a check does not ask for it.
        private_key: The key, a PEM file.

    Raises:
        FinetuneError: the key cannot be read or is of another kind, or the library is missing.
    """
    config = require("model_signing.signing", extra="sign").Config()
    word = os.environ.get(PASSWORD)
    try:
        signer = config.use_elliptic_key_signer(
            private_key=private_key, password=word.encode() if word else None
        )
    except OSError as error:
        raise FinetuneError(reason_of(error), where=str(private_key)) from error
    except Exception as error:  # the library lets errors of others through
        raise _unfit(private_key, error) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_text(text, encoding="utf-8", newline="")
        signature = Path(folder, f"{name}.sig")
        signer.sign(file, signature)
        return signature.read_text(encoding="utf-8")


def fault_of_signature(certificate: Path, public_key: Path) -> str | None:
    """Return what is wrong with the signature beside a certificate; None if it holds.

    Args:
        certificate: The certificate.
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
    signature = signature_place(certificate)
    if not signature.exists():
        return f"there is no file {str(signature)!r}"
    try:
        verifier.verify(certificate, signature)
    except Exception as error:  # noqa: BLE001 - whatever a forged file raises is no signature
        return _why(error)
    return None


def _unfit(key: Path, error: Exception) -> FinetuneError:
    """Return the error for a key that cannot be used."""
    text = str(error)
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
