//! Signatures by Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`.

use aws_lc_rs::hmac;
use data_encoding::BASE64;

/// A secret that is not `whsec_` and base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint's secret is not of the form whsec_ and base64")]
pub struct BadSecret;

/// The value of `webhook-signature`: one signature a secret, so that a receiver that knows any of them believes it.
pub fn sign_all(
    secrets: &[String],
    id: &str,
    timestamp_s: i64,
    body: &str,
) -> Result<String, BadSecret> {
    let signatures: Result<Vec<String>, BadSecret> =
        secrets.iter().map(|secret| sign(secret, id, timestamp_s, body)).collect();
    Ok(signatures?.join(" "))
}

/// One signature.
pub fn sign(secret: &str, id: &str, timestamp_s: i64, body: &str) -> Result<String, BadSecret> {
    let encoded = secret.strip_prefix("whsec_").ok_or(BadSecret)?;
    let key = BASE64.decode(encoded.as_bytes()).map_err(|_not_base64| BadSecret)?;
    if key.is_empty() {
        return Err(BadSecret);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let tag = hmac::sign(&key, format!("{id}.{timestamp_s}.{body}").as_bytes());
    Ok(format!("v1,{}", BASE64.encode(tag.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_example_is_reproduced() {
        // From the Standard Webhooks test vectors.
        let signature = sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_make_two_signatures() {
        let secrets = ["whsec_AAAA".to_owned(), "whsec_BBBB".to_owned()];
        let both = sign_all(&secrets, "evt_1", 1, "{}").unwrap();
        let each: Vec<String> =
            secrets.iter().map(|secret| sign(secret, "evt_1", 1, "{}").unwrap()).collect();
        assert_eq!(both, each.join(" "));
        assert_ne!(each[0], each[1]);
        assert_eq!(sign_all(&["whsec_".to_owned()], "evt_1", 1, "{}"), Err(BadSecret));
    }

    #[test]
    fn a_secret_of_another_form_is_refused() {
        for secret in ["", "whsec_", "whsec_%%%", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert_eq!(sign(secret, "evt_1", 1, "{}"), Err(BadSecret), "{secret}");
        }
    }
}
