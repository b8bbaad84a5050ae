//! Which addresses a client agrees to talk to.

use std::net::IpAddr;

use url::{Host, Url};

use crate::ClientError;

/// Where a core listens unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7077";

/// Reads the address of a core. Plain HTTP is good for the loopback interface only: elsewhere passwords and tokens would
/// cross the network readable by anyone on it.
pub(crate) fn parse(text: &str) -> Result<Url, ClientError> {
    let refuse = |reason: &str| ClientError::Address { url: text.to_owned(), reason: reason.to_owned() };
    let mut url = Url::parse(text).map_err(|_| refuse("it is not a URL such as http://127.0.0.1:7077"))?;
    let Some(host) = url.host() else { return Err(refuse("it names no host")) };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&host) => {}
        "http" => {
            return Err(refuse(
                "plain HTTP to another machine would show passwords and tokens to the network; only loopback addresses \
                 (127.0.0.1, [::1], localhost) may be used without TLS",
            ));
        }
        _ => return Err(refuse("only http:// and https:// are spoken")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it holds a user name or password; use `login` instead"));
    }
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(ip) => IpAddr::V4(*ip).is_loopback(),
        Host::Ipv6(ip) => IpAddr::V6(*ip).is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_stays_on_this_machine() {
        for good in ["http://127.0.0.1:7077", "http://localhost:1", "http://[::1]:7077/", "https://swarm.example"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in
            ["http://10.0.0.1:7077", "http://localhost.evil.example", "ftp://127.0.0.1", "7077", "http://a:b@[::1]"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = parse("http://swarm.example:7077").unwrap_err().to_string();
        assert!(error.contains("plain HTTP") && error.contains("TLS"), "{error}");
    }
}
