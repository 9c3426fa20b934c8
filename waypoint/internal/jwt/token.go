package jwt

import (
	"encoding/base64"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// maxToken bounds a token. Longer ones do not come in headers of sane clients.
const maxToken = 32 << 10

// maxDepth bounds how deep objects and lists of a token stand in each other, as protobuf's own reader does.
const maxDepth = 100

// Token is one token that was read. Nothing in it is to be believed before Verify said OK.
type Token struct {
	Header      *structpb.Struct
	Payload     *structpb.Struct
	PayloadText string // base64url, as it came
	Issuer      string
	Subject     string
	Audiences   []string

	raw       string
	alg       string
	kid       string
	expires   uint64
	notBefore uint64
	hasExpiry bool
}

// Parse reads a token in compact form. Every text has one reading: no padding, no stray bits, no name twice in one object.
func Parse(raw string) (*Token, Status) {
	if len(raw) > maxToken {
		return nil, BadFormat
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return nil, BadFormat
	}
	t := &Token{raw: raw, PayloadText: parts[1]}
	if s := t.parseHeader(parts[0]); s != OK {
		return nil, s
	}
	payload, s := object(parts[1], PayloadBadBase64, PayloadBadJSON)
	if s != OK {
		return nil, s
	}
	t.Payload = payload
	if s := t.parseClaims(); s != OK {
		return nil, s
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(parts[2]); err != nil || strings.ContainsAny(parts[2], "\r\n") {
		return nil, SignatureBadBase64
	}
	return t, OK
}

func (t *Token) parseHeader(text string) Status {
	header, s := object(text, HeaderBadBase64, HeaderBadJSON)
	if s != OK {
		return s
	}
	t.Header = header
	f := header.GetFields()
	alg, ok := f["alg"].GetKind().(*structpb.Value_StringValue)
	if !ok {
		return HeaderBadAlg
	}
	t.alg = alg.StringValue
	if kindOf(t.alg) == 0 {
		return HeaderUnknownAlg
	}
	if t.kid, s = textOf(f, "kid", HeaderBadKid); s != OK {
		return s
	}
	if f["crit"] != nil || f["b64"] != nil {
		return HeaderCritical
	}
	return OK
}

func (t *Token) parseClaims() (s Status) {
	f := t.Payload.GetFields()
	if t.Issuer, s = textOf(f, "iss", IssuerNotString); s != OK {
		return s
	}
	if t.Subject, s = textOf(f, "sub", SubjectNotString); s != OK {
		return s
	}
	if _, _, s = secondsOf(f, "iat", IssuedNotInteger, IssuedOutOfRange); s != OK {
		return s
	}
	if t.notBefore, _, s = secondsOf(f, "nbf", NotBeforeNotInteger, NotBeforeOutOfRange); s != OK {
		return s
	}
	if t.expires, t.hasExpiry, s = secondsOf(f, "exp", ExpiresNotInteger, ExpiresOutOfRange); s != OK {
		return s
	}
	if _, s = textOf(f, "jti", IDNotString); s != OK {
		return s
	}
	switch aud := f["aud"].GetKind().(type) {
	case nil:
	case *structpb.Value_StringValue:
		t.Audiences = []string{aud.StringValue}
	case *structpb.Value_ListValue:
		for _, v := range aud.ListValue.GetValues() {
			one, ok := v.GetKind().(*structpb.Value_StringValue)
			if !ok {
				return AudienceNotString
			}
			t.Audiences = append(t.Audiences, one.StringValue)
		}
	default:
		return AudienceNotString
	}
	return OK
}

// object reads one base64url section that holds a JSON object.
func object(text string, badBase64, badJSON Status) (*structpb.Struct, Status) {
	// The decoder skips line breaks; a reader further on may not.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") {
		return nil, badBase64
	}
	if tooDeep(raw) {
		return nil, badJSON
	}
	out := &structpb.Struct{}
	if err := protojson.Unmarshal(raw, out); err != nil {
		return nil, badJSON
	}
	return out, OK
}

// tooDeep counts brackets outside of strings.
func tooDeep(raw []byte) bool {
	depth, quoted, escaped := 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func textOf(f map[string]*structpb.Value, name string, wrong Status) (string, Status) {
	v := f[name]
	if v == nil {
		return "", OK
	}
	s, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		return "", wrong
	}
	return s.StringValue, OK
}

func secondsOf(f map[string]*structpb.Value, name string, wrong, outside Status) (n uint64, there bool, s Status) {
	v := f[name]
	if v == nil {
		return 0, false, OK
	}
	d, ok := v.GetKind().(*structpb.Value_NumberValue)
	switch {
	case !ok:
		return 0, false, wrong
	case !(d.NumberValue >= 0 && d.NumberValue < math.MaxUint64):
		return 0, false, outside
	}
	return uint64(d.NumberValue), true, OK
}

// InTime says whether the token is valid at a moment, give or take a difference between clocks.
func (t *Token) InTime(now time.Time, skew time.Duration) Status {
	at, slack := uint64(max(now.Unix(), 0)), uint64(skew/time.Second)
	switch {
	case at+slack < t.notBefore:
		return NotYetValid
	case t.hasExpiry && at > slack && at-slack > t.expires:
		return Expired
	}
	return OK
}

// Lifetime is how much longer the token is valid; ok is false when it never expires.
func (t *Token) Lifetime(now time.Time) (left time.Duration, ok bool) {
	if !t.hasExpiry {
		return 0, false
	}
	const longest = math.MaxInt64 / uint64(time.Second)
	at := uint64(max(now.Unix(), 0))
	if t.expires <= at {
		return 0, true
	}
	return time.Duration(min(t.expires-at, longest)) * time.Second, true
}
