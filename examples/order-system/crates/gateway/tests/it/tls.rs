//! The gateway speaks TLS itself.

use std::sync::Arc;

use http::StatusCode;
use order_gateway::{Instances, registry::TTL};
use order_kit::{Context, context::Ports, env};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, rustls};

use crate::support::{env, fake, mirror};

#[tokio::test]
async fn https_is_answered_and_said_to_the_service() {
    let data = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["gateway.test".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = data.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let env = env()
        .with(env::GATEWAY_TLS_CERT, file("cert.pem", made.cert.pem()))
        .with(env::GATEWAY_TLS_KEY, file("key.pem", made.signing_key.serialize_pem()));
    let products = fake(mirror()).await;
    let env = env.with(env::PRODUCT_SERVICE_URL, format!("http://{}", products.address));
    let registry = Arc::new(Instances::new(TTL, Arc::new(Ports(1))));
    let broker = order_broker::open("memory:").await.unwrap();
    let context = Context::new(order_gateway::NAME, env, data.path(), broker, registry.clone());
    let router = order_gateway::build(context.clone(), registry).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(order_gateway::serve(context.clone(), router, listener));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("gateway.test").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let request = b"GET /api/products HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK)), "{answer}");
    assert!(answer.contains(r#""x-forwarded-proto":"https""#), "{answer}");

    // Without TLS there is no answer.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"));
    context.stop().cancel();
    server.await.unwrap().unwrap();
}
