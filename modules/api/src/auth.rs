//! Who is asking: bearer tokens from the configuration, compared in constant time.

use axum::http::HeaderMap;

use crate::status::ApiError;

/// A token and whom it stands for.
#[derive(Clone)]
pub struct Token {
    /// The secret text.
    pub secret: String,
    /// Name of the user or program, for logs.
    pub user: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({})", self.user)
    }
}

/// The user of a request's `Authorization: Bearer` header. Who asks to act as somebody else is refused, rather than
/// given the rights of their own token.
pub fn authenticate<'a>(tokens: &'a [Token], headers: &HeaderMap) -> Result<&'a str, ApiError> {
    if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        let message = "impersonation is not served yet: leave out --as and --as-group";
        return Err(ApiError::new(403, "Forbidden", message));
    }
    let given = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let Some(given) = given.filter(|token| !token.is_empty()) else { return Err(ApiError::unauthorized()) };
    let mut user = None;
    // Every token is compared, so that time does not tell which one came near.
    for token in tokens {
        if equal(token.secret.as_bytes(), given.as_bytes()) {
            user = Some(token.user.as_str());
        }
    }
    user.ok_or_else(ApiError::unauthorized)
}

/// Equality whose time depends on the lengths only.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let different = a.iter().zip(b).fold(0u8, |sum, (x, y)| std::hint::black_box(sum | (x ^ y)));
    !a.is_empty() && a.len() == b.len() && different == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_bearer_token_passes() {
        let tokens = [
            Token { secret: "abc".into(), user: "admin".into() },
            Token { secret: String::new(), user: "none".into() },
        ];
        for (header, want) in [
            (Some("Bearer abc"), Some("admin")),
            (Some("bearer abc"), Some("admin")),
            (Some("Bearer abcd"), None),
            (Some("Bearer "), None),
            (Some("Basic abc"), None),
            (None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert("authorization", header.parse().unwrap());
            }
            assert_eq!(authenticate(&tokens, &headers).ok(), want, "{header:?}");
        }
    }
}
