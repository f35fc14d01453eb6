"""Images with CernVM's kind of signature at their end."""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.certificates import Certified

BLOCK_BYTES = 32 * 1024
METADATA = b'{\n"head" : "HEAD"\n}\n'


def signed_image(
    content: bytes,
    signer: Certified,
    metadata: bytes = METADATA,
    howto: str = "",
    certificate_pem: bytes | None = None,
) -> bytes:
    """The content with its two blocks. howto: what stands before certificate and signature, `"key" : "value",`.

    certificate_pem: in place of the signer's certificate.
    """
    signed = content + metadata.ljust(BLOCK_BYTES, b"\0")
    signature = signer.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    values = {"certificate": certificate_pem or signer.certificate_pem, "signature": signature}
    pairs = ",\n".join(
        f"{json.dumps(k)} : {json.dumps(base64.b64encode(v).decode())}" for k, v in values.items()
    )
    return signed + f"{{\n{howto}{pairs}\n}}\n".encode().ljust(BLOCK_BYTES, b"\0")
