//! Subject filters: are they well-formed, do two of them meet, does one let through all that another does?
//!
//! NATS' own rules: tokens between dots, `*` is one token, `>` is one or more and stands last.

/// The longest filter that an object may name.
pub const FILTER_MAX_BYTES: usize = 256;
/// The most tokens of a filter that an object may name.
pub const TOKENS_MAX: usize = 16;

/// Is `filter` well-formed? The error is for people.
pub fn check(filter: &str) -> Result<(), String> {
    if filter.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if filter.len() > FILTER_MAX_BYTES {
        return Err(format!("must have at most {FILTER_MAX_BYTES} bytes"));
    }
    if filter.split('.').count() > TOKENS_MAX {
        return Err(format!("must have at most {TOKENS_MAX} tokens"));
    }
    let mut tokens = filter.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() {
            return Err("has an empty token: no dot at the start, at the end, or beside another".to_owned());
        }
        if token.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("must have no space and no control character".to_owned());
        }
        if token == ">" && tokens.peek().is_some() {
            return Err("'>' stands for all the rest: it must be the last token".to_owned());
        }
        if token.len() > 1 && token.contains(['*', '>']) {
            return Err(format!("token {token:?}: '*' and '>' stand for whole tokens"));
        }
    }
    Ok(())
}

/// Is there a subject that both let through?
pub fn overlaps(one: &str, other: &str) -> bool {
    overlap(one, other).is_some()
}

/// The filter that matches what both `one` and `other` match (`*` one token, `>` one or more); `None` when nothing does.
/// Two filters always meet in a single one: token by token the narrower of both.
pub fn overlap(one: &str, other: &str) -> Option<String> {
    let mut ones = one.split('.');
    let mut others = other.split('.');
    let mut common: Vec<&str> = Vec::new();
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return Some(common.join(".")),
            (Some(">"), Some(rest)) => {
                common.push(rest);
                common.extend(others);
                return Some(common.join("."));
            }
            (Some(rest), Some(">")) => {
                common.push(rest);
                common.extend(ones);
                return Some(common.join("."));
            }
            (Some("*"), Some(token)) | (Some(token), Some("*")) => common.push(token),
            (Some(token), Some(same)) if token == same => common.push(token),
            _ => return None,
        }
    }
}

/// Does `outer` let through everything that `inner` does?
pub fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) => return true,
            (_, Some(">")) => return false,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::matches;
    use proptest::prelude::*;

    #[test]
    fn filters_are_well_formed_or_told_why_not() {
        for good in ["a", "a.b", "a.*", "a.*.b", "a.>", "*", ">", "a.$x-_=.ä"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            (".a", "empty token"),
            ("a.", "empty token"),
            ("a..b", "empty token"),
            ("a.>.b", "last token"),
            ("a.b*", "whole tokens"),
            ("a.>>", "whole tokens"),
            ("a b", "no space"),
            ("a.\u{7}", "control"),
            (&"x".repeat(257), "at most 256 bytes"),
            (&"x.".repeat(20), "at most 16 tokens"),
        ] {
            assert!(check(bad).is_err_and(|error| error.contains(why)), "{bad:?}: {:?}", check(bad));
        }
    }

    #[test]
    fn two_filters_meet_or_do_not() {
        for (one, other, meet, covered) in [
            ("a", "a", true, true),
            ("a", "b", false, false),
            ("a.*", "a.b", true, true),
            ("a.b", "a.*", true, false),
            ("a.>", "a.*", true, true),
            ("a.*", "a.>", true, false),
            ("a.>", "a", false, false),
            ("a.*.c", "a.b.*", true, false),
            ("*.b", "a.>", true, false),
            (">", "a.b", true, true),
            ("a.>", "b.>", false, false),
        ] {
            assert_eq!(overlaps(one, other), meet, "{one} meets {other}");
            assert_eq!(overlaps(other, one), meet, "{other} meets {one}");
            assert_eq!(covers(one, other), covered, "{one} covers {other}");
        }
    }

    #[test]
    fn filters_meet_in_the_narrower() {
        for (one, other, want) in [
            ("up.>", "up.demo.*", Some("up.demo.*")),
            (">", "ew.dead.>", Some("ew.dead.>")),
            ("*.demo.>", "up.>", Some("up.demo.>")),
            ("ew.*.sync", "ew.dead.>", Some("ew.dead.sync")),
            ("a.*", "*.b", Some("a.b")),
            ("a.>", "a", None),
            ("a.b", "a.b.c", None),
            ("app.>", "up.>", None),
        ] {
            assert_eq!(overlap(one, other).as_deref(), want, "{one} {other}");
            assert_eq!(overlap(other, one).as_deref(), want, "{other} {one}");
        }
    }

    proptest! {
        #[test]
        fn what_both_match_the_overlap_matches(
            one in prop::collection::vec("[ab*]", 1..4), one_rest: bool,
            other in prop::collection::vec("[ab*]", 1..4), other_rest: bool,
            subject in prop::collection::vec("[ab]", 1..5),
        ) {
            let filter = |tokens: &[String], rest| tokens.join(".") + if rest { ".>" } else { "" };
            let (one, other, subject) = (filter(&one, one_rest), filter(&other, other_rest), subject.join("."));
            let both = matches(&one, &subject) && matches(&other, &subject);
            prop_assert_eq!(overlap(&one, &other).is_some_and(|common| matches(&common, &subject)), both);
        }

        #[test]
        fn they_agree_with_matching(
            one in "[ab*](\\.[ab*]){0,2}(\\.>)?", other in "[ab*](\\.[ab*]){0,2}(\\.>)?", subject in "[ab](\\.[ab]){0,3}"
        ) {
            let (in_one, in_other) = (matches(&one, &subject), matches(&other, &subject));
            if in_one && in_other {
                prop_assert!(overlaps(&one, &other));
            }
            if covers(&one, &other) && in_other {
                prop_assert!(in_one);
            }
        }
    }
}
