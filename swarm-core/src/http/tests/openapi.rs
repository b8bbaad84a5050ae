//! The description of the API against the API.

use std::collections::BTreeSet;

use super::*;

/// The description that is committed, for those who make clients of it.
const COMMITTED: &str = include_str!("../../../../docs/openapi.json");

fn described() -> Value {
    serde_json::from_str(&openapi().unwrap()).unwrap()
}

/// Every operation: its method in capitals, its path as documented, and what is said of it.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap().clone();
        item.into_iter().map(|(method, operation)| (method.to_uppercase(), path.clone(), operation)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// A mounted pattern as documents write it.
fn as_documented(pattern: &str) -> String {
    pattern.replace('<', "{").replace('>', "}")
}

fn parameters(operation: &Value, place: &str) -> BTreeSet<String> {
    let all = operation["parameters"].as_array().into_iter().flatten();
    all.filter(|one| one["in"] == place).map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_mounted_is_documented_and_what_is_documented_is_mounted() {
    let swarm = Swarm::start().await;
    let rocket = swarm.client.rocket();
    let query = |uri: &rocket::http::uri::Origin<'_>| {
        let names = uri.query().map(|query| query.as_str()).unwrap_or_default();
        names.split('&').map(|name| name.trim_matches(['<', '>']).to_owned()).filter(|name| !name.is_empty()).collect()
    };
    let mounted: BTreeSet<(String, String, BTreeSet<String>)> = rocket
        .routes()
        .map(|route| {
            let (path, query) = (as_documented(route.uri.path()), query(&route.uri.origin));
            (route.method.to_string(), path, query)
        })
        .collect();
    let documented = operations(&described()).into_iter();
    let documented =
        documented.map(|(method, path, operation)| (method, path, parameters(&operation, "query"))).collect();
    assert_eq!(mounted, documented);
}

#[test]
fn the_committed_description_is_this_one() {
    let hint = "write it anew: cargo run -- core openapi > docs/openapi.json";
    assert!(format!("{}\n", openapi().unwrap()) == COMMITTED, "docs/openapi.json is not what the routes say; {hint}");
}

#[test]
fn each_operation_says_what_it_is_and_names_its_path() {
    let document = described();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let summary = operation["summary"].as_str().unwrap_or_default();
        assert!(!summary.is_empty() && !summary.ends_with('.'), "{method} {path}: `{summary}`");
        assert!(ids.insert(operation["operationId"].to_string()), "{method} {path} has another one's operationId");
        let named: BTreeSet<String> =
            path.split('/').filter_map(|part| Some(part.strip_prefix('{')?.strip_suffix('}')?.to_owned())).collect();
        assert_eq!(parameters(&operation, "path"), named, "{method} {path}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
        }
    }
}

/// Everything that is referred to is there.
#[test]
fn no_reference_leads_nowhere() {
    let document = described();
    let mut refs = Vec::new();
    collect(&document, &mut refs);
    assert!(refs.len() > 50, "{}", refs.len());
    for name in refs {
        assert!(document.pointer(name.trim_start_matches('#')).is_some(), "{name}");
    }
}

fn collect(value: &Value, refs: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            refs.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect(value, refs));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, refs)),
        _ => {}
    }
}

#[tokio::test]
async fn the_role_that_is_documented_is_the_least_one_that_may_come_in() {
    let swarm = Swarm::start().await;
    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((role, swarm.user(&format!("u-{}", role.as_str()), role, "lab").await.1));
    }
    for (method, path, operation) in operations(&described()) {
        let Some(least) = operation["security"][0]["account"][0].as_str() else { continue };
        // Ends the session that others need.
        if path.ends_with("/logout") {
            continue;
        }
        let least = Role::parse(least).unwrap();
        let parts: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "99" } else { part }).collect();
        for (role, token) in &tokens {
            let method: Method = method.parse().unwrap();
            let status = swarm.send(method, &parts.join("/"), token, &[], "").await.status().code;
            assert_ne!(status, 401, "{method} {path} as {role:?}");
            assert_eq!(status == 403, *role < least, "{method} {path} as {role:?} is answered {status}");
        }
    }
}

#[tokio::test]
async fn it_is_served_to_who_has_an_account() {
    let swarm = Swarm::start().await;
    let (_, token) = swarm.user("vera", Role::Viewer, "lab").await;
    assert_eq!(swarm.get("/api/v1/openapi.json", &token).await, (200, described()));
}
