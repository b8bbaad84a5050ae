//! A Redis with TLS: believed if its certificate is signed by whom the configuration names, and not used otherwise.

use std::net::TcpListener;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_util::sync::CancellationToken;

use super::server::{Server, eventually};
use crate::cache::conformance::{LIMIT, connecting};
use crate::cache::{Cache, RedisSettings};

fn authority(file: &Path) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(file, issuer.pem()).unwrap();
    issuer
}

#[tokio::test]
async fn only_a_server_with_the_right_certificate_is_used() {
    // As the programs do first of all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (ours, _) = (authority(&path("ours.pem")), authority(&path("others.pem")));
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ours).unwrap();
    std::fs::write(path("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let flags = [
        ("--tls-port", port.to_string()),
        ("--tls-cert-file", path("cert.pem").display().to_string()),
        ("--tls-key-file", path("key.pem").display().to_string()),
        ("--tls-ca-cert-file", path("ours.pem").display().to_string()),
        ("--tls-auth-clients", "no".to_owned()),
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
    let _server = Server::start(&flags).await;
    let settings = |host: &str, ca: &str| RedisSettings {
        url: format!("rediss://{host}:{port}").into(),
        ca_file: Some(path(ca)),
        plain_text: false,
    };
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let right = connecting(settings("localhost", "ours.pem"), LIMIT, &stop);
    eventually("the server is used", async || right.health().to_string() == "redis: up").await;
    for (host, ca) in [("localhost", "others.pem"), ("127.0.0.1", "ours.pem")] {
        let wrong = connecting(settings(host, ca), LIMIT, &stop);
        eventually("it says why not", async || wrong.health().to_string().contains("certificate")).await;
        assert_eq!(wrong.health().word(), "redis: away");
    }
}
