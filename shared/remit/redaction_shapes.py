"""Values that look like a credential wherever they stand, and the forms in which programs pass them on. Pure."""

from __future__ import annotations

import re

SECRET_VALUE = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JSON Web Token or Encryption: base64url of `{"`
    r"|(?i:\b(?:bearer|basic|dpop)\s+[a-z0-9._~+/-]{16,}=*)"  # RFC 9110 section 11.4 credentials
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"  # RFC 7468
    r"|\bS[UAONCX][A-Z2-7]{56}\b"  # NATS nkey seed
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}|\bya29\.[0-9A-Za-z_.-]{10,}"  # clouds
    r"|\bdo[opr]_v1_[a-f0-9]{64}|\bAGE-SECRET-KEY-1[0-9A-Z]{20,}|\b\d{8,10}:AA[A-Za-z0-9_-]{33}"
    r"|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_.-]{10,}"  # forges
    r"|\b(?:sk|rk)[-_][A-Za-z0-9_-]{20,}|\bwhsec_[A-Za-z0-9+/=]{16,}"  # payment, models
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}|\bhf_[A-Za-z0-9]{20,}|\bhv[sb]\.[A-Za-z0-9_-]{20,}",
    re.DOTALL,
)
STARTS = (
    "eyJ", "-----BEGIN", "SU", "SA", "SO", "SN", "SC", "SX", "AKIA", "ASIA", "AIza", "ya29.", "_v1_", "AGE-SECRET", ":AA", "gho_",
    "ghp_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "sk-", "sk_", "rk-", "rk_", "whsec_", "xox", "xapp-", "SG.", "npm_",
    "pypi-", "hf_", "hvs.", "hvb.",
)  # fmt: skip
SCHEMES = ("bearer", "basic", "dpop")
"""Whatever `SECRET_VALUE` finds has one of `STARTS` in it, or of `SCHEMES` in any case; other text is not searched."""
URL_SECRETS = (
    re.compile(
        r"(?P<head>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/?#:@\"'<>]{0,256}:)"
        r"(?P<secret>[^\s/?#\"'<>]{1,512})(?=@)"
    ),  # the password of RFC 3986 section 3.2.1; the user's name stays
    re.compile(r"(?P<head>://)(?P<secret>(?=[^\s/@]{0,64}[0-9])[A-Za-z0-9_.-]{16,256})(?=@)"),  # a token in its place
    re.compile(
        r"(?P<head>://hooks\.slack\.com/\w{1,20}/|://discord(?:app)?\.com/api/webhooks/\d{1,24}/)(?P<secret>[\w/-]{8,256})"
    ),
    re.compile(
        r"(?P<head>(?i:[?&;#](?:amp;)?(?:sig|signature|x-(?:amz|goog)-(?:signature|credential|security-token))=))"
        r"(?P<secret>[^\s&\"'<>]{8,2048})"
    ),
    re.compile(r"(?P<head>[?&]code=)(?P<secret>(?=[^\s&]{0,64}[0-9A-Z])[\w.~%/-]{16,512})"),  # RFC 6749 section 4.1.2
)
TOLD = (
    re.compile(
        r"(?i)(?P<head>(?<![\w-])(?:credentials?|creds?|logins?)(?:[ ]?[:=]|[ ](?:is|are|was|were))[ ]?\S{1,64}?[ ]?[/|][ ]?)"
        r"(?P<secret>[^\s/|]{3,200})"
    ),
    re.compile(r"(?P<head>:thin:[^\s/@:]{1,64}/)(?P<secret>[^\s@\"']{1,256})(?=@)"),
    re.compile(r"(?P<head>(?<!\S)(?:-u|--user)[ =][\"']?[\w.@+-]{1,64}:)(?P<secret>[^\s\"']{1,256})"),
    re.compile(r"(?P<head>\b(?:mysql|mariadb)\w{0,12}\b[^\r\n]{0,120}?[ ]-p)(?P<secret>[^\s\"'-]\S{2,256})"),
    re.compile(r"(?P<head>\bsshpass[ ]+-p[ ]?[\"']?)(?P<secret>[^\s\"']{1,256})"),
    re.compile(r"(?P<head>Private-Lines: \d{1,4}\r?\n)(?P<secret>(?:[A-Za-z0-9+/=]{1,128}(?:\r?\n|$)){1,200})"),
)
"""Forms in which the value needs no name."""
NAMED = (
    re.compile(r"(?P<head>(?<!\S)--?(?P<name>[A-Za-z][\w-]{2,40})[ ][\"']?)(?P<secret>[^\s\"'-][^\s\"']{2,256})"),
    re.compile(
        r"(?i)(?P<head>(?:%3f|%26|%23|[?&=])(?P<name>[a-z_][\w-]{1,40})%3d)(?P<secret>(?:(?!%26)[^&\s\"'<>]){1,512})"
    ),
    re.compile(
        r"(?i)(?P<head>^[ \t-]{0,40}[\"']?(?:name|key|variable)[\"']?[ ]?[:=][ ]?[\"']?(?P<name>[\w.-]{1,64})[\"']?,?[ \t]*\r?\n"
        r"[ \t]{0,40}[\"']?(?:value|val|content)[\"']?[ ]?[:=][ ]?)(?P<secret>[^\r\n]{1,4096})",
        re.MULTILINE,
    ),
    re.compile(
        r"(?i)(?P<head>\bname=[\"']?(?P<name>[\w.-]{1,64})[\"']?[^<>\r\n]{0,100}?\bvalue=[\"']?)(?P<secret>[^\"'<>\r\n]{1,512})"
    ),
    re.compile(
        r"(?i)(?P<head>\bname=\"(?P<name>[\w.-]{1,64})\"[^\r\n]{0,100}\r?\n(?:[\w-]{1,40}:[^\r\n]{0,200}\r?\n){0,4}\r?\n)"
        r"(?P<secret>[^\r\n]{1,4096})"
    ),
    re.compile(
        r"(?i)(?P<head>(?<![\w.-])-{0,2}(?P<name>[a-z][\w-]{2,40})[ \t\"'`:=]{1,4}(?:is[ \t\"'`:]{1,3})?)"
        r"(?P<secret>(?=[^\s]{0,512}[0-9+/=])[a-z0-9+/_-]{20,}={0,2})"
    ),  # a name, then a long run of base64 or hexadecimal digits
)
"""Forms in which the value is a secret when its name is one."""
BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}={0,2}")
"""What may be text once it is decoded (RFC 4648 sections 4 and 5)."""
HINTS = (
    "pass", "creds", "pw", "psw", "secret", "token", "key", "code", "pin", "otp", "credential", "cookie", "auth", "bearer", "jwt",
    "cvc", "cvv", "login", "session", "conn", "kennwort", "motdepasse", "curl", "mysql", "mariadb", "--user",
)  # fmt: skip
"""Every name that promises a secret has one of these in it; text without any is not searched for names."""
