//! Who asks: `Authorization: Basic …`, or `Bearer …` with the same text for clients that know only that. Both are
//! `base64(USER:PASSWORD)`, the login that stands in `BUS_HTTP_URL` and `NATS_URL`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bus::guest::Pass;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use schemas::command::Refusal;

/// Reads the login of a request.
pub fn login(headers: &HeaderMap) -> Result<Pass, Refusal> {
    let refused = |message: &str| Refusal::new(401, "EW-HTTP-LOGIN", message.to_owned());
    let value = headers.get(AUTHORIZATION).ok_or_else(|| {
        refused("a login is needed: user and password of BUS_HTTP_URL, as HTTP Basic; `curl $BUS_HTTP_URL/…` sends it")
    })?;
    value.to_str().ok().and_then(parse).ok_or_else(|| {
        refused("the login cannot be read; send `Authorization: Basic` and base64 of USER:PASSWORD")
    })
}

fn parse(value: &str) -> Option<Pass> {
    let (scheme, text) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") && !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Pass { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn read(value: &str) -> Result<(String, String), u16> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        login(&headers).map(|pass| (pass.user, pass.password)).map_err(|refusal| refusal.status)
    }

    #[test]
    fn a_login_is_read() {
        let want = Ok(("pod-1".to_owned(), "A:B".to_owned()));
        let text = STANDARD.encode("pod-1:A:B");
        for scheme in ["Basic", "basic", "Bearer"] {
            assert_eq!(read(&format!("{scheme} {text}")), want, "{scheme}");
        }
        for bad in ["", "Basic", "Basic x", "Digest cG9kLTE6eA==", &STANDARD.encode("a:b"), "Basic cG9kLTE="]
        {
            assert_eq!(read(bad), Err(401), "{bad}");
        }
        assert_eq!(login(&HeaderMap::new()).map(drop).map_err(|refusal| refusal.status), Err(401));
    }
}
