//! Where Redis is, and whether it may be talked to there.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// What the configuration says of Redis.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://`, `rediss://` (TLS) or `redis+unix://`.
    pub url: RedisUrl,
    /// A file of PEM certificates by which the server's has to be signed; the public authorities when absent.
    pub ca_file: Option<PathBuf>,
    /// Whether a server on another machine may be talked to without TLS.
    pub plain_text: bool,
}

/// A server's address. It may hold a password, so it is never printed.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct RedisUrl(SecretString);

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(SecretString::from(url))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl([REDACTED])")
    }
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Not one at all.
    #[error("it is no address of a Redis")]
    Malformed,
    /// Passwords and all else could be read on the way.
    #[error("the server is on another machine and would be talked to without TLS")]
    PlainText,
    /// There is no TLS to which the certificates could belong.
    #[error("a file of certificates is given for an address without TLS")]
    NoTls,
}

impl RedisSettings {
    /// Whether the address may be used.
    ///
    /// # Errors
    /// [`RedisUrlError`], which never holds the address.
    pub fn check(&self) -> Result<(), RedisUrlError> {
        self.info().map(drop)
    }

    fn info(&self) -> Result<ConnectionInfo, RedisUrlError> {
        // Their error may quote the address.
        let info = self.url.0.expose_secret().into_connection_info().map_err(|_| RedisUrlError::Malformed)?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: false, .. } => return Ok(info),
            ConnectionAddr::Tcp(host, _) if is_loopback(host) || self.plain_text => {}
            ConnectionAddr::Unix(_) => {}
            ConnectionAddr::Tcp(..) => return Err(RedisUrlError::PlainText),
            // Such as TLS without a check of the certificate (`#insecure`), which is worse than none: it looks safe.
            _ => return Err(RedisUrlError::Malformed),
        }
        if self.ca_file.is_some() { Err(RedisUrlError::NoTls) } else { Ok(info) }
    }

    /// A client, not yet connected.
    ///
    /// # Errors
    /// When the address cannot be used, or the file cannot be read.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let info = self.info().context("the address of Redis")?;
        let Some(file) = &self.ca_file else { return Client::open(info).context("the address of Redis") };
        let read = || format!("the certificates for Redis in {}", file.display());
        let root_cert = Some(std::fs::read(file).with_context(read)?);
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert }).with_context(read)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> RedisSettings {
        RedisSettings { url: url.to_owned().into(), ca_file: None, plain_text: false }
    }

    #[test]
    fn plain_text_stays_on_this_machine_unless_told_otherwise() {
        for near in
            ["redis://127.0.0.1", "redis://:pw@[::1]:6380/2", "redis://localhost", "redis+unix:///run/redis.sock"]
        {
            assert_eq!(settings(near).check(), Ok(()), "{near}");
        }
        for far in ["redis://10.0.0.1", "redis://redis:6379", "redis://localhost.example.org"] {
            assert_eq!(settings(far).check(), Err(RedisUrlError::PlainText), "{far}");
            assert_eq!(RedisSettings { plain_text: true, ..settings(far) }.check(), Ok(()), "{far}");
        }
        assert_eq!(settings("rediss://redis.example.org").check(), Ok(()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in ["", "redis", "http://127.0.0.1", "rediss://redis.example.org/#insecure", "redis://127.0.0.1/x"] {
            assert_eq!(settings(wrong).check(), Err(RedisUrlError::Malformed), "{wrong}");
        }
        let with_ca = |url| RedisSettings { ca_file: Some("ca.pem".into()), ..settings(url) };
        assert_eq!(with_ca("redis://127.0.0.1").check(), Err(RedisUrlError::NoTls));
        assert_eq!(with_ca("rediss://127.0.0.1").check(), Ok(()));
        let error = format!("{:#}", with_ca("rediss://:hunter2@127.0.0.1").client().unwrap_err());
        assert!(error.contains("ca.pem") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_is_never_printed() {
        let shown = format!("{:?}", settings("redis://:hunter2@127.0.0.1"));
        assert!(shown.contains("REDACTED") && !shown.contains("hunter2"), "{shown}");
    }
}
