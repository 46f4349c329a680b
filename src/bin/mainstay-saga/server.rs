//! A store in PostgreSQL: its address, how the connection is encrypted, and what to do when that fails.

use std::sync::Arc;

use mainstay::saga::{journal::StoreError, postgres::Postgres};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::{
    Config, NoTls,
    config::{SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::Error;

/// The store that is at this address: none is made. `ca` is a file of root certificates, and asks for a connection that is verified by them.
pub async fn open(address: &str, schema: &str, ca: Option<&str>) -> Result<Postgres, Error> {
    let config = configure(address, ca)?;
    let mode = config.get_ssl_mode();
    let connect = match mode {
        SslMode::Disable => Postgres::connect_with(config, NoTls),
        _ => {
            let tls = MakeRustlsConnect::new(client(&config, ca)?);
            Postgres::connect_with(config, tls)
        }
    };
    connect.schema(schema).existing().await.map_err(|error| match advice(&error.to_string(), mode) {
        Some(advice) => format!("{error}; {advice}").into(),
        None => error.into(),
    })
}

fn configure(address: &str, ca: Option<&str>) -> Result<Config, Error> {
    let mut config = address.parse::<Config>().map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let absent = StoreError::Absent(format!("{error}: {cause}"));
        match cause.contains("ssl") {
            true => {
                format!("{absent}; sslmode is disable, prefer or require, and roots are given by --ca FILE")
            }
            false => absent.to_string(),
        }
    })?;
    if ca.is_some() {
        if config.get_ssl_mode() == SslMode::Disable {
            return Err("--ca, or MAINSTAY_SAGA_CA, is for an encrypted connection, and the address says sslmode=disable".into());
        }
        config.ssl_mode(SslMode::Require);
    }
    // A server that is named by a number alone has this for its name.
    if config.get_hosts().is_empty() {
        for address in config.get_hostaddrs().to_vec() {
            config.host(address.to_string());
        }
    }
    Ok(config)
}

/// Verified, with the server's name, if encryption is required.
fn client(config: &Config, ca: Option<&str>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut client = match config.get_ssl_mode() {
        SslMode::Prefer => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            .with_no_client_auth(),
        _ => builder.with_root_certificates(roots(ca)?).with_no_client_auth(),
    };
    if config.get_ssl_negotiation() == SslNegotiation::Direct {
        // Servers refuse a handshake out of the blue that does not say what it is for.
        client.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(client)
}

/// Those of the file, or those of the system.
fn roots(ca: Option<&str>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let Some(file) = ca else {
        let loaded = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(loaded.certs);
        return match (roots.is_empty(), loaded.errors.first()) {
            (false, _) => Ok(roots),
            (true, None) => {
                Err("this system has no root certificates: give the server's by --ca FILE".into())
            }
            (true, Some(why)) => {
                Err(format!("this system's root certificates: {why}: give the server's by --ca FILE").into())
            }
        };
    };
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for certificate in found.map_err(|error| format!("--ca {file}: {error}"))? {
        roots.add(certificate).map_err(|error| format!("--ca {file}: {error}"))?;
    }
    match roots.is_empty() {
        true => Err(format!("--ca {file}: there is no certificate in it").into()),
        false => Ok(roots),
    }
}

/// What to do about an error that comes of a wrong place, of encryption, or of doing without.
fn advice(error: &str, mode: SslMode) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if says(&["no tables of sagas in the schema"]) {
        return Some("another one is named by --schema S, or MAINSTAY_SAGA_SCHEMA");
    }
    if mode == SslMode::Disable {
        // Each server, and each proxy before one, has its own words for it.
        return says(&["no encryption", "SSL", "TLS", "insecure"]).then_some(
            "the address says sslmode=disable, and the server wants an encrypted connection: say sslmode=require",
        );
    }
    if says(&["invalid peer certificate"]) {
        return Some(
            "sslmode=require wants a certificate that a root of this system, or of --ca FILE, has signed for the host in the address",
        );
    }
    if mode == SslMode::Prefer && says(&["TLS handshake"]) {
        return Some(
            "the server offers encryption that cannot be agreed upon: say sslmode=disable if nobody can listen on the way",
        );
    }
    says(&["server does not support TLS"])
        .then_some("turn its `ssl` on, or say sslmode=disable if nobody can listen on the way")
}

/// Takes every certificate, which is what `sslmode=prefer` is: who could show a false one could as well answer that there is no
/// encryption. It keeps those out who only listen.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
