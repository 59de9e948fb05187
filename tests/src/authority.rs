//! A certificate authority for a test run: made in memory, trusted only by clients given the root.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Names in the provider's certificate; the last two belong to no AI provider.
pub const NAMES: &[&str] = &[
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "files.example.test",
    "localhost",
];

/// Root certificate, and a leaf signed by the root, with its key.
#[derive(Debug)]
pub struct Authority {
    root_pem: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Authority {
    /// Makes a root and a leaf for [`NAMES`].
    pub fn new() -> anyhow::Result<Self> {
        let mut root = CertificateParams::new(Vec::new())?;
        root.distinguished_name.push(DnType::CommonName, "GenOps test authority");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_key = KeyPair::generate()?;
        let root_certificate = root.self_signed(&root_key)?;
        let issuer = Issuer::new(root, root_key);

        let mut leaf =
            CertificateParams::new(NAMES.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        leaf.distinguished_name.push(DnType::CommonName, "GenOps test provider");
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf_key = KeyPair::generate()?;
        let leaf_certificate = leaf.signed_by(&leaf_key, &issuer)?;
        Ok(Self {
            root_pem: root_certificate.pem(),
            chain: vec![leaf_certificate.der().clone()],
            key: leaf_key.serialize_der(),
        })
    }

    /// Writes the root as PEM, the format of a client's `SSL_CERT_FILE`.
    pub fn write_root(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, &self.root_pem).with_context(|| format!("{}", path.display()))
    }

    /// Returns the leaf and its key, in DER.
    pub fn leaf(&self) -> anyhow::Result<(&[u8], &[u8])> {
        Ok((self.chain.first().context("a leaf")?, &self.key))
    }

    /// Returns a server configuration offering HTTP/1.1, and HTTP/2 if `http2` is set.
    pub fn server_config(&self, http2: bool) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)?;
        if http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(Arc::new(config))
    }
}
