"""The cluster's keys in its folder: service-account signing key, administrator's token, certificates; made once."""

import datetime
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class Keys:
    """Files (private ones with mode 0600) and the two values that callers need."""

    signing_key: Path  # RSA, PEM
    public_key: Path
    ca: Path
    certificate: Path
    certificate_key: Path
    admin_token_file: Path

    @property
    def admin_token(self) -> str:
        """The bearer token of `admin` in the group system:masters."""
        return self.admin_token_file.read_text()

    @property
    def service_account_public_key(self) -> str:
        """PEM, to check service-account tokens with."""
        return self.public_key.read_text()


def prepare(folder: Path) -> Keys:
    """The keys in `folder`; what is missing is made."""
    keys = Keys(
        signing_key=folder / "service-account.key",
        public_key=folder / "service-account.pub",
        ca=folder / "ca.crt",
        certificate=folder / "server.crt",
        certificate_key=folder / "server.key",
        admin_token_file=folder / "admin-token",
    )
    if not keys.admin_token_file.exists():
        _write(keys.admin_token_file, secrets.token_urlsafe(32).encode())
    if not keys.public_key.exists():
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = private.public_key()
        _write(keys.signing_key, _private_pem(private))
        _write(
            keys.public_key,
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        )
    if not keys.ca.exists():
        _make_certificates(keys)
    return keys


def _make_certificates(keys: Keys) -> None:
    """A certificate authority and a loopback server certificate, strict enough for Go and for Python ≥ 3.13."""
    now = datetime.datetime.now(datetime.UTC)

    def builder(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=365))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def usage(*, signs: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=signs,
            crl_sign=signs,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        builder("kubernetes", "kubernetes", ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(signs=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    names = [x509.DNSName("localhost"), *(x509.IPAddress(address) for address in addresses)]
    certificate = (
        builder("kube-apiserver", "kubernetes", key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(keys.certificate_key, _private_pem(key))
    _write(keys.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    _write(keys.ca, ca.public_bytes(serialization.Encoding.PEM))


def _private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, text: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    fresh.replace(path)
