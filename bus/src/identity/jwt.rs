//! NATS' JSON web tokens, version 2: operator, account and user claims signed with ed25519 keys. Pure: the caller gives
//! keys and time.
//!
//! The form follows nats-io/jwt v2: header and claims as JSON, base64url without padding, and an id that is the SHA-512/256
//! of the claims in base32. A server trusts a user because its account signed it, and an account because the operator did.

use std::collections::BTreeMap;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use schemas::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512_256};

use super::{IdentityError, Permissions};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Which users of an account are revoked: public key to the second up to which their tokens are worthless.
pub type Revocations = BTreeMap<String, i64>;

/// The operator's own token. `system_account` is the public key of the account of the server itself.
pub fn operator(
    key: &KeyPair,
    name: &str,
    system_account: &str,
    now: Timestamp,
) -> Result<String, IdentityError> {
    let nats = json!({"type": "operator", "version": 2, "system_account": system_account});
    sign(key, &key.public_key(), name, nats, None, now)
}

/// What an account has, gives and takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// Streams, of any size: their bounds stand in the table of streams.
    pub streams: bool,
    /// What other accounts may use of it.
    pub exports: Vec<Value>,
    /// What it uses of others.
    pub imports: Vec<Value>,
}

impl Terms {
    /// Does an account's token state them?
    pub fn are_of(&self, token: &str) -> bool {
        let claims = claims(token).unwrap_or_default();
        let list = |name: &str| -> Vec<Value> {
            claims.pointer(name).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let streams = claims.pointer("/nats/limits/disk_storage").and_then(Value::as_i64) == Some(-1);
        self.streams == streams
            && self.exports == list("/nats/exports")
            && self.imports == list("/nats/imports")
    }
}

/// An account's token.
pub fn account(
    operator: &KeyPair,
    public_key: &str,
    name: &str,
    terms: &Terms,
    revocations: &Revocations,
    now: Timestamp,
) -> Result<String, IdentityError> {
    let storage = if terms.streams { -1 } else { 0 };
    let nats = json!({
        "exports": terms.exports,
        "imports": terms.imports,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
            "max_ack_pending": -1,
        },
        "default_permissions": {"pub": {}, "sub": {}},
        "revocations": revocations,
        "type": "account", "version": 2,
    });
    sign(operator, public_key, name, nats, None, now)
}

/// A user's token; with `answers`, it may answer what it hears. It cannot be used without the user's own key, which never
/// leaves its machine.
pub fn user(
    account: &KeyPair,
    public_key: &str,
    name: &str,
    permissions: &Permissions,
    answers: bool,
    expires: Option<Timestamp>,
    now: Timestamp,
) -> Result<String, IdentityError> {
    let limits = ["subs", "data", "payload"].map(|limit| (limit.to_owned(), json!(-1)));
    let kind = [("type".to_owned(), json!("user")), ("version".to_owned(), json!(2))];
    let nats: Map<String, Value> =
        permissions.claims(answers).into_iter().chain(limits).chain(kind).collect();
    let nats = Value::Object(nats);
    sign(account, public_key, name, nats, expires, now)
}

/// The text of a credentials file: a user's token and its secret key.
pub fn creds(token: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         The seed below proves this identity: whoever has it, is it. Keep it secret.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
         *************************************************************\n"
    )
}

/// The claims of a token, unchecked: for showing, and for reading a name or an expiry that the signer knows is its own.
pub fn claims(token: &str) -> Option<Value> {
    let body = token.trim().split('.').nth(1)?;
    serde_json::from_slice(&BASE64URL_NOPAD.decode(body.as_bytes()).ok()?).ok()
}

fn sign(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    nats: Value,
    expires: Option<Timestamp>,
    now: Timestamp,
) -> Result<String, IdentityError> {
    let mut claims = json!({
        "iat": now.0 / 1000, "iss": issuer.public_key(), "name": name, "sub": subject, "nats": nats,
    });
    let Value::Object(fields) = &mut claims else {
        return Err(IdentityError::key(name, "claims are an object"));
    };
    if let Some(expires) = expires {
        fields.insert("exp".into(), json!(expires.0 / 1000));
    }
    let id = BASE32_NOPAD.encode(&Sha512_256::digest(json!(fields).to_string()));
    fields.insert("jti".into(), json!(id));
    let body = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(HEADER.as_bytes()),
        BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
    );
    let signature = issuer.sign(body.as_bytes()).map_err(|error| IdentityError::key(name, error))?;
    Ok(format!("{body}.{}", BASE64URL_NOPAD.encode(&signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_was_signed() {
        let account = KeyPair::new_account();
        let user_key = KeyPair::new_user();
        let token = user(
            &account,
            &user_key.public_key(),
            "n1",
            &Permissions::default(),
            false,
            Some(Timestamp(9_000)),
            Timestamp(5_000),
        )
        .unwrap();
        let claims = claims(&token).unwrap();
        assert_eq!((&claims["exp"], &claims["iat"]), (&json!(9), &json!(5)));
        assert_eq!(claims["nats"]["pub"], json!({"deny": [">"]}));
        let (body, signature) = token.rsplit_once('.').unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        assert!(account.verify(body.as_bytes(), &signature).is_ok());
        assert!(user_key.verify(body.as_bytes(), &signature).is_err());
    }
}
