//! How a Postgres is reached: its URL, taken apart and put together again as libpq's keywords, so that both read the same
//! hosts; which links have to be encrypted; what every session is set to; the schema of this installation.

use std::net::IpAddr;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use percent_encoding::percent_decode_str;

use super::connect::{OpenError, Purpose};

/// Whether this build of libpq can encrypt.
const HAS_TLS: bool = cfg!(feature = "postgres-tls");
/// Parameters that a URL may have, beside `host` for a socket's directory.
const PARAMETERS: [&str; 8] = [
    "application_name",
    "connect_timeout",
    "options",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
];
/// What a URL need not say. A host that vanishes is noticed within 15 s, and of several hosts the one that takes writes is
/// used. An empty `hostaddr` keeps the variable PGHOSTADDR from leading elsewhere.
const DEFAULTS: [(&str, &str); 7] = [
    ("hostaddr", ""),
    ("application_name", "swarm-core"),
    ("connect_timeout", "5"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "2"),
    ("tcp_user_timeout", "15000"),
];
/// The first half of the key of the advisory lock under which tables are made; the second one is the schema's.
const MIGRATION_LOCK: i32 = 0x7377_6d31;
/// Postgres cuts longer names.
const SCHEMA_BYTES_MAX: usize = 63;

/// A Postgres, and the schema in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Keywords and values as libpq reads them, password included.
    conninfo: String,
    /// The URL without password and parameters.
    at: String,
    /// A plain identifier; the URL's own search path when absent.
    schema: Option<String>,
}

/// Never with the password.
impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.at)?;
        self.schema.iter().try_for_each(|schema| write!(f, " (schema {schema})"))
    }
}

impl Server {
    /// Reads `postgres://user:password@host:port,host:port/database?parameter=value`. `plaintext` allows a link that
    /// leaves the machine without being encrypted and verified.
    pub(super) fn parse(text: &str, schema: Option<&str>, plaintext: bool) -> Result<Self, OpenError> {
        let parts = Parts::read(text)?;
        let is_local = parts.hosts.iter().all(|(host, _)| is_local(host));
        let sslmode = parts.parameters.iter().find(|(key, _)| key == "sslmode").map(|(_, value)| value.as_str());
        check_link(is_local, sslmode, plaintext, HAS_TLS).map_err(OpenError::Url)?;
        let schema = schema.map(checked_schema).transpose()?;
        Ok(Self { conninfo: parts.conninfo(), at: parts.shown, schema })
    }

    /// A new connection, set up for its purpose.
    pub(super) fn connect(&self, purpose: Purpose) -> ConnectionResult<PgConnection> {
        let mut conn = PgConnection::establish(&self.conninfo)?;
        // A core that stalls inside a transaction, or that is not heard any more, must not hold the epoch row against its
        // successor for long: the server notices the latter as soon as the core does.
        let mut settings = "SET synchronous_commit = on; SET client_min_messages = warning; \
                            SET idle_in_transaction_session_timeout = '30s'; SET tcp_keepalives_idle = 5; \
                            SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 2; SET tcp_user_timeout = 15000;"
            .to_owned();
        if let Some(schema) = &self.schema {
            settings.push_str(&format!("SET search_path TO \"{schema}\";"));
        }
        if purpose == Purpose::Read {
            settings.push_str("SET default_transaction_read_only = on;");
        }
        // Errors are told apart by their English text, which only a superuser may ask for.
        settings.push_str(
            "SELECT set_config('lc_messages', 'C', false) FROM pg_roles WHERE rolname = current_user AND rolsuper;",
        );
        conn.batch_execute(&settings).map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(conn)
    }

    /// The schema of this installation, if it has one of its own.
    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// What `pg_dump` needs to be told of this store, without the password.
    pub(super) fn dump_flags(&self) -> String {
        let schema = self.schema.as_ref().map(|schema| format!(" --schema={schema}")).unwrap_or_default();
        format!("--dbname={}{schema}", self.at)
    }
}

/// Runs `work` while nobody else does on this schema, which is made before if it is missing: cores that start at once make
/// their tables one after the other.
pub(super) fn alone<T>(
    conn: &mut PgConnection,
    schema: Option<&str>,
    work: impl FnOnce(&mut PgConnection) -> diesel::migration::Result<T>,
) -> diesel::migration::Result<T> {
    let name = schema.map_or("coalesce(current_schema(), '')".to_owned(), |schema| format!("'{schema}'"));
    let key = format!("{MIGRATION_LOCK}, hashtext({name})");
    conn.batch_execute(&format!("SELECT pg_advisory_lock({key})"))?;
    let made = schema.map_or(Ok(()), |schema| make_schema(conn, schema));
    let done = made.map_err(Into::into).and_then(|()| work(conn));
    conn.batch_execute(&format!("SELECT pg_advisory_unlock({key})"))?;
    done
}

/// Asks before it makes one: a role may use a schema that was made for it without being allowed to make any.
fn make_schema(conn: &mut PgConnection, schema: &str) -> QueryResult<()> {
    let query = format!("SELECT count(*) AS count FROM pg_namespace WHERE nspname = '{schema}'");
    let known: Count = diesel::sql_query(query).get_result(conn)?;
    if known.count == 0 { conn.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")) } else { Ok(()) }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

fn refuse(why: &str) -> OpenError {
    OpenError::Url(format!("{why}; use postgres://user@localhost/database or ?host=/directory/of/the/socket"))
}

/// A URL, taken apart and decoded.
/// What is said of a part that is not what its place asks for. It is not quoted.
const AMBIGUOUS: &str = "a host, port or parameter cannot be understood; write `/`, `?` and `@` of a password as %2F, %3F \
                         and %40";

struct Parts {
    user: Option<String>,
    password: Option<String>,
    /// At least one, each with its port.
    hosts: Vec<(String, Option<String>)>,
    database: String,
    parameters: Vec<(String, String)>,
    /// Where it leads, as it was written, and nothing secret.
    shown: String,
}

impl Parts {
    fn read(text: &str) -> Result<Self, OpenError> {
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (account, hosts) = authority.rsplit_once('@').map_or((None, authority), |(who, at)| (Some(who), at));
        let who = account.map(|account| format!("{}@", account.split(':').next().unwrap_or_default()));
        let mut shown = format!("postgres://{}{hosts}/{database}", who.unwrap_or_default());
        let (user, password) = match account.map(|account| account.split_once(':').unwrap_or((account, ""))) {
            None => (None, None),
            Some((user, "")) => (Some(decode(user)?), None),
            Some((user, password)) => (Some(decode(user)?), Some(decode(password)?)),
        };
        let mut hosts: Vec<_> = hosts.split(',').filter(|host| !host.is_empty()).map(host).collect::<Result<_, _>>()?;
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            match key.as_str() {
                "host" if value.starts_with('/') && hosts.is_empty() => {
                    shown.push_str(&format!("?host={value}"));
                    hosts.push((value, None));
                }
                "host" | "hostaddr" => {
                    return Err(refuse(&format!("`{key}` in the query must be a socket's directory")));
                }
                // libpq takes the last one, so what is judged here has to be the only one.
                known if parameters.iter().any(|(given, _)| given == known) => {
                    return Err(refuse(&format!("the parameter `{known}` is given twice")));
                }
                known if PARAMETERS.contains(&known) => parameters.push((key, value)),
                // Anything else may be a piece of a password with a `?` in it.
                named if named.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') => {
                    return Err(refuse(&format!("the parameter `{key}` is not supported")));
                }
                _ => return Err(refuse(AMBIGUOUS)),
            }
        }
        if hosts.is_empty() {
            return Err(refuse("the database's URL names no host"));
        }
        Ok(Self { user, password, hosts, database: decode(database)?, parameters, shown })
    }

    /// As libpq reads it, with what goes without saying.
    fn conninfo(&self) -> String {
        let mut words = Vec::new();
        let mut add = |key: &str, value: &str| {
            words.push(format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
        };
        let hosts: Vec<&str> = self.hosts.iter().map(|(host, _)| host.as_str()).collect();
        let ports: Vec<&str> = self.hosts.iter().map(|(_, port)| port.as_deref().unwrap_or("5432")).collect();
        add("host", &hosts.join(","));
        add("port", &ports.join(","));
        for (key, value) in [("user", &self.user), ("password", &self.password)] {
            value.iter().for_each(|value| add(key, value));
        }
        if !self.database.is_empty() {
            add("dbname", &self.database);
        }
        let several = [("target_session_attrs", "read-write")];
        let several = several.iter().filter(|_| self.hosts.len() > 1);
        for (key, value) in DEFAULTS.iter().chain(several) {
            if self.parameters.iter().all(|(given, _)| given != key) {
                add(key, value);
            }
        }
        self.parameters.iter().for_each(|(key, value)| add(key, value));
        words.join(" ")
    }
}

/// A host, in brackets if it is an IPv6 address, and its port.
fn host(text: &str) -> Result<(String, Option<String>), OpenError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    match port.map(str::parse::<u16>) {
        // Not quoted: it may be a piece of a password with a `/` or a `?` in it.
        Some(Err(_)) => Err(refuse(AMBIGUOUS)),
        _ => Ok((decode(host)?, port.map(str::to_owned))),
    }
}

fn decode(text: &str) -> Result<String, OpenError> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| refuse("a part of the URL is not UTF-8"))?;
    // After decoding, for libpq would take what follows for further hosts, or for nothing.
    if decoded.contains('\0') { Err(refuse("a part of the URL holds a NUL")) } else { Ok(decoded.into_owned()) }
}

/// Whether what is sent to `host` stays on this machine.
fn is_local(host: &str) -> bool {
    host.starts_with('/') && !host.contains(',')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A link that leaves the machine is encrypted and its server verified, unless `plaintext` says otherwise.
fn check_link(is_local: bool, sslmode: Option<&str>, plaintext: bool, has_tls: bool) -> Result<(), String> {
    match sslmode {
        Some(mode @ ("require" | "verify-ca" | "verify-full")) if !has_tls => {
            Err(format!("sslmode={mode} needs a build with the cargo feature `postgres-tls`, which this one lacks"))
        }
        _ if is_local || plaintext => Ok(()),
        _ if !has_tls => Err("a Postgres server on another host is refused, since this build cannot encrypt the \
                              connection to it: build with the cargo feature `postgres-tls`, or bring the server here \
                              through an encrypted tunnel, or set database_plaintext = true if nobody else is on that \
                              network"
            .to_owned()),
        Some("verify-full") => Ok(()),
        _ => Err("a Postgres server on another host is refused unless the connection to it is verified: add \
                  ?sslmode=verify-full&sslrootcert=/path/of/its/ca.pem, or set database_plaintext = true if nobody \
                  else is on that network"
            .to_owned()),
    }
}

/// Only what needs no quotes anywhere.
fn checked_schema(name: &str) -> Result<String, OpenError> {
    let mut letters = name.bytes();
    let is_plain = letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_');
    if is_plain && name.len() <= SCHEMA_BYTES_MAX && !name.starts_with("pg_") {
        Ok(name.to_owned())
    } else {
        Err(OpenError::Url(format!(
            "database_schema `{}` is no plain name: use lower-case letters, digits and `_`, no digit first, at most \
             {SCHEMA_BYTES_MAX}, and not pg_…",
            swarm_protocol::text::sanitise(name, false)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Server, OpenError> {
        Server::parse(text, None, false)
    }

    #[test]
    fn postgres_must_be_on_this_machine() {
        let local = [
            "postgres://a:b@localhost/x",
            "postgresql://127.0.0.1:5433/x",
            "postgres://[::1]/x",
            "postgres://[::1]:5433,localhost:5434/x",
            "postgres:///x?host=/run/postgresql",
            "postgres://%2Frun%2Fpostgresql/x",
            "postgres://localhost/x?options=-csearch_path%3Da",
        ];
        for text in local {
            assert!(parse(text).is_ok(), "{text}");
        }
        let elsewhere = [
            "postgres://db.example/x",
            "postgres://10.0.0.1/x",
            "postgres://127.0.0.1,10.0.0.1/x",
            "postgres://%2Frun,10.0.0.1/x",
            "postgres://%2Frun%2C10.0.0.1/x",
            "postgres://localhost%2C10.0.0.1/x",
        ];
        for text in elsewhere {
            assert!(parse(text).is_err(), "{text}");
            assert!(Server::parse(text, None, true).is_ok(), "{text}");
        }
        let wrong = [
            "postgres://localhost/x?host=10.0.0.1",
            "postgres://localhost/x?hostaddr=10.0.0.1",
            "postgres://localhost/x?host=/run",
            "postgres://localhost/x?service=other",
            "postgres://localhost:five/x",
            "postgres://localhost/%00",
            "postgres:///x",
            "postgres://localhost/x?sslmode=verify-full&sslmode=disable",
        ];
        for text in wrong {
            assert!(Server::parse(text, None, true).is_err(), "{text}");
        }
    }

    #[test]
    fn no_piece_of_a_password_is_printed() {
        for text in ["postgres://u:hunter/2@db/x", "postgres://u:hunter?2@db/x", "postgres://u:54/hunter?Hunter2@db/x"]
        {
            let error = parse(text).map(drop).unwrap_err().to_string();
            assert!(!error.to_lowercase().contains("hunter") && error.contains("%2F"), "{error}");
        }
    }

    /// What libpq is told is what was judged, whatever the URL looks like to others.
    #[test]
    fn libpq_is_told_what_was_judged() {
        let info = |text: &str| parse(text).unwrap().conninfo;
        let plain = info("postgres://me:it%27s%5C%40@[::1]:5433/my%20db");
        assert!(
            plain.starts_with(r"host='::1' port='5433' user='me' password='it\'s\\@' dbname='my db' hostaddr=''"),
            "{plain}"
        );
        assert!(!plain.contains("target_session_attrs"), "{plain}");
        let several = info("postgres://localhost:1,127.0.0.1/x?connect_timeout=9");
        assert!(several.starts_with("host='localhost,127.0.0.1' port='1,5432'"), "{several}");
        assert!(several.contains("target_session_attrs='read-write' connect_timeout='9'"), "{several}");
        let tricky = info("postgres://localhost?options=@db.example/x");
        assert!(tricky.starts_with("host='localhost'") && tricky.contains("options='@db.example/x'"), "{tricky}");
    }

    #[test]
    fn a_link_that_leaves_the_machine_is_verified_unless_the_operator_says_otherwise() {
        /// Whether it is local, its sslmode, whether plaintext is allowed and TLS built in; a word of the refusal.
        type Case = (bool, Option<&'static str>, bool, bool, Option<&'static str>);
        let cases: [Case; 12] = [
            (true, None, false, false, None),
            (true, Some("prefer"), false, false, None),
            (true, Some("require"), false, false, Some("postgres-tls")),
            (true, Some("require"), false, true, None),
            (false, None, false, false, Some("postgres-tls")),
            (false, None, true, false, None),
            (false, Some("verify-full"), true, false, Some("postgres-tls")),
            (false, Some("verify-full"), false, true, None),
            (false, Some("verify-ca"), false, true, Some("verify-full")),
            (false, Some("require"), false, true, Some("verify-full")),
            (false, None, false, true, Some("verify-full")),
            (false, None, true, true, None),
        ];
        for (local, sslmode, plaintext, tls, refused) in cases {
            let answer = check_link(local, sslmode, plaintext, tls);
            let case = format!("local {local}, {sslmode:?}, plaintext {plaintext}, TLS {tls}: {answer:?}");
            match refused {
                None => assert!(answer.is_ok(), "{case}"),
                Some(word) => assert!(answer.is_err_and(|text| text.contains(word)), "{case}"),
            }
        }
    }

    #[test]
    fn a_schema_is_a_plain_name() {
        for name in ["a", "_x", "swarm_2", &"s".repeat(63)] {
            assert!(checked_schema(name).is_ok(), "{name}");
        }
        for name in ["", "2a", "A", "a-b", "a b", "a\"b", "a;b", "ä", "pg_x", &"s".repeat(64)] {
            let error = checked_schema(name).unwrap_err().to_string();
            assert!(error.contains("plain name"), "{name}: {error}");
        }
    }

    #[test]
    fn a_server_never_shows_its_password() {
        let server = Server::parse("postgres://swarm:hunter2@localhost/x", Some("s1"), false).unwrap();
        assert_eq!(server.to_string(), "postgres://swarm@localhost/x (schema s1)");
        assert_eq!(server.dump_flags(), "--dbname=postgres://swarm@localhost/x --schema=s1");
    }
}
