use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use super::*;

fn key(byte: u8) -> SigningKey {
    SigningKey::from_secret(SecretBox::new(Box::new([byte; 32])))
}

fn swarm() -> SwarmId {
    SwarmId(Uuid::from_u128(7))
}

fn tokens() -> AccessTokens {
    AccessTokens::new(swarm(), LIFETIME, &key(1), &[key(2)])
}

fn now() -> DateTime<Utc> {
    "2026-11-21T03:00:00Z".parse().unwrap()
}

fn ada() -> Subject<'static> {
    Subject {
        user: UserId(42),
        name: "ada",
        role: Role::Operator,
        group: GroupId(3),
        token_version: 5,
        family: Uuid::from_u128(9),
    }
}

fn good_header() -> Value {
    json!({"alg": "HS256", "typ": "JWT", "kid": key(1).id()})
}

fn good_claims() -> Value {
    json!({
        "sub": "42", "name": "ada", "role": "operator", "grp": 3, "iat": now().timestamp(), "exp": now().timestamp() + 600,
        "jti": Uuid::from_u128(1), "aud": AUDIENCE, "iss": swarm().to_string(), "tv": 5, "fam": Uuid::from_u128(9),
    })
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    object[name] = value;
    object
}

fn without(mut object: Value, name: &str) -> Value {
    object.as_object_mut().unwrap().remove(name);
    object
}

/// A token made by hand, so that it can be wrong in any way.
fn forge(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn verdict(header: &Value, claims: &Value) -> Result<Bearer, JwtError> {
    tokens().verify(&forge(header, claims, &[1; 32]), now())
}

#[test]
fn a_token_says_who_its_bearer_is() {
    let (token, issued) = tokens().issue(&ada(), now()).unwrap();
    let bearer = tokens().verify(&token, now()).unwrap();
    assert_eq!(bearer, issued);
    assert_eq!((bearer.user, bearer.name.as_str(), bearer.role), (UserId(42), "ada", Role::Operator));
    assert_eq!((bearer.group, bearer.token_version), (GroupId(3), 5));
    assert_eq!(bearer.expires_at, now() + LIFETIME);
    let (_, other) = tokens().issue(&ada(), now()).unwrap();
    assert_ne!(other.token_id, bearer.token_id);
}

#[test]
fn a_token_made_by_hand_the_same_way_passes() {
    // Otherwise the refusals below would prove nothing.
    assert_eq!(verdict(&good_header(), &good_claims()).unwrap().user, UserId(42));
}

#[test]
fn it_lives_exactly_as_long_as_said_plus_the_leeway() {
    let (token, bearer) = tokens().issue(&ada(), now()).unwrap();
    let at = |seconds: i64| tokens().verify(&token, bearer.expires_at + chrono::Duration::seconds(seconds));
    assert!(at(4).is_ok());
    assert_eq!(at(5), Err(JwtError::Expired));
    assert_eq!(at(100_000_000), Err(JwtError::Expired));
    assert!(at(-605).is_ok());
    assert_eq!(at(-606), Err(JwtError::FromTheFuture));
    assert!(JwtError::Expired.is_expiry() && !JwtError::Signature.is_expiry());
    assert!(JwtError::FromTheFuture.is_expiry(), "the clock was set back: a refresh mends it");
}

#[test]
fn foreign_signatures_are_refused() {
    let claims = good_claims();
    let unsigned = |alg: &str| {
        let header = with(good_header(), "alg", alg.into());
        let token = forge(&header, &claims, &[1; 32]);
        token[..=token.rfind('.').unwrap()].to_owned()
    };
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        assert_eq!(tokens().verify(&unsigned(alg), now()), Err(JwtError::Algorithm), "{alg:?} without signature");
    }
    for alg in ["none", "HS384", "HS512", "RS256", "ES256", "EdDSA", "PS512", "hs256"] {
        assert_eq!(verdict(&with(good_header(), "alg", alg.into()), &claims), Err(JwtError::Algorithm), "{alg}");
    }
    let wrong_key = forge(&good_header(), &claims, &[9; 32]);
    assert_eq!(tokens().verify(&wrong_key, now()), Err(JwtError::Signature));
    assert_eq!(tokens().verify(&forge(&good_header(), &claims, b""), now()), Err(JwtError::Signature));
    let earlier_key_under_current_name = forge(&good_header(), &claims, &[2; 32]);
    assert_eq!(tokens().verify(&earlier_key_under_current_name, now()), Err(JwtError::Signature));
    assert_eq!(tokens().verify(&unsigned("HS256"), now()), Err(JwtError::Signature));
}

#[test]
fn the_key_named_must_be_one_in_use() {
    let claims = good_claims();
    let foreign = with(good_header(), "kid", key(9).id().into());
    assert_eq!(tokens().verify(&forge(&foreign, &claims, &[9; 32]), now()), Err(JwtError::UnknownKey));
    assert_eq!(verdict(&without(good_header(), "kid"), &claims), Err(JwtError::UnknownKey));
    assert_eq!(verdict(&with(good_header(), "kid", "../../dev/null".into()), &claims), Err(JwtError::UnknownKey));
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode([9; 32])});
    let smuggled = with(good_header(), "jwk", jwk);
    let result = tokens().verify(&forge(&smuggled, &claims, &[9; 32]), now());
    assert!(result.is_err(), "a key in the header is never used: {result:?}");
    // Rotation: tokens of the earlier key still pass, and no longer once it is gone.
    let earlier = AccessTokens::new(swarm(), LIFETIME, &key(2), &[]);
    let (token, _) = earlier.issue(&ada(), now()).unwrap();
    assert!(tokens().verify(&token, now()).is_ok());
    let rotated = AccessTokens::new(swarm(), LIFETIME, &key(1), &[]);
    assert_eq!(rotated.verify(&token, now()), Err(JwtError::UnknownKey));
}

#[test]
fn wrong_claims_are_refused_although_signed() {
    let cases = [
        ("aud", json!("another-api"), JwtError::Audience),
        ("aud", json!(["x"]), JwtError::Audience),
        ("aud", json!([AUDIENCE, "x"]), JwtError::Claims),
        ("aud", json!(7), JwtError::Claims),
        ("iss", json!(Uuid::from_u128(8).to_string()), JwtError::Issuer),
        ("iss", json!([swarm().to_string()]), JwtError::Claims),
        ("exp", json!("9999999999"), JwtError::Claims),
        ("exp", json!(9_999_999_999.5), JwtError::Claims),
        ("exp", json!(null), JwtError::Claims),
        ("exp", json!(-1), JwtError::Claims),
        ("exp", json!(0), JwtError::Expired),
        ("exp", json!(i64::MAX), JwtError::Claims),
        ("exp", json!(u64::MAX), JwtError::Claims),
        ("iat", json!("now"), JwtError::Claims),
        ("iat", json!(now().timestamp() + 60), JwtError::FromTheFuture),
        ("sub", json!(42), JwtError::Claims),
        ("sub", json!("ada"), JwtError::Claims),
        ("sub", json!("-1"), JwtError::Claims),
        ("role", json!("root"), JwtError::Claims),
        ("role", json!("ADMIN"), JwtError::Claims),
        ("role", json!(3), JwtError::Claims),
        ("grp", json!("3"), JwtError::Claims),
        ("tv", json!(-1), JwtError::Claims),
        ("tv", json!(1u64 << 32), JwtError::Claims),
        ("jti", json!("not-a-uuid"), JwtError::Claims),
    ];
    for (name, value, expected) in cases {
        assert_eq!(
            verdict(&good_header(), &with(good_claims(), name, value.clone())),
            Err(expected),
            "{name} = {value}"
        );
    }
    for name in ["sub", "name", "role", "grp", "iat", "exp", "jti", "aud", "iss", "tv", "fam"] {
        assert_eq!(verdict(&good_header(), &without(good_claims(), name)), Err(JwtError::Claims), "without {name}");
    }
}

#[test]
fn tampered_tokens_are_refused() {
    let (token, _) = tokens().issue(&ada(), now()).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let promoted = URL_SAFE_NO_PAD.encode(with(good_claims(), "role", "admin".into()).to_string());
    let swapped = format!("{}.{promoted}.{}", parts[0], parts[2]);
    assert_eq!(tokens().verify(&swapped, now()), Err(JwtError::Signature));
    for index in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(tokens().verify(&changed, now()).is_err(), "changed at {index}");
    }
    assert!(tokens().verify(&token[..token.len() - 1], now()).is_err());
    assert!(tokens().verify(&format!("{token}="), now()).is_err());
    assert!(tokens().verify(&format!(" {token}"), now()).is_err());
}

#[test]
fn what_is_no_token_is_called_so() {
    for text in ["", ".", "..", "...", "a.b.c", "swr_AAAA", "é.é.é", "{}.{}.{}"] {
        assert_eq!(tokens().verify(text, now()), Err(JwtError::Malformed), "{text:?}");
    }
    assert_eq!(verdict(&with(good_header(), "crit", json!(["exp"])), &good_claims()), Err(JwtError::Malformed));
    assert_eq!(verdict(&good_header(), &json!([1, 2])), Err(JwtError::Malformed));
    let long = with(good_claims(), "name", "x".repeat(5000).into());
    assert_eq!(verdict(&good_header(), &long), Err(JwtError::TooLong));
}

#[test]
fn keys_are_random_and_named_without_being_shown() {
    let (one, two) = (SigningKey::generate(), SigningKey::generate());
    assert_ne!(one.id(), two.id());
    assert_ne!(one.secret().expose_secret(), two.secret().expose_secret());
    assert_ne!(one.secret().expose_secret(), &[0; 32]);
    assert!(!hex::encode(one.secret().expose_secret()).contains(one.id()));
}

proptest! {
    #[test]
    fn hostile_text_is_refused_without_panic(text in "\\PC{0,200}", header in "[A-Za-z0-9_-]{0,60}") {
        prop_assert!(tokens().verify(&text, now()).is_err());
        let parts = [header.as_str(); 3].join(".");
        prop_assert!(tokens().verify(&parts, now()).is_err());
    }
}
