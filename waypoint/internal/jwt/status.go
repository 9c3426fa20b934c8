package jwt

import "net/http"

// Status is the outcome of judging a token.
type Status uint8

// The outcomes, with Envoy's words for them. OK is the zero value of none of them on purpose: an outcome that nobody set is a refusal.
const (
	Unset Status = iota
	OK
	Missing
	NotYetValid
	Expired
	BadFormat
	HeaderBadBase64
	HeaderBadJSON
	HeaderBadAlg
	HeaderUnknownAlg
	HeaderBadKid
	HeaderCritical
	PayloadBadBase64
	PayloadBadJSON
	IssuerNotString
	SubjectNotString
	IssuedNotInteger
	IssuedOutOfRange
	NotBeforeNotInteger
	NotBeforeOutOfRange
	ExpiresNotInteger
	ExpiresOutOfRange
	IDNotString
	AudienceNotString
	SignatureBadBase64
	UnknownIssuer
	AudienceNotAllowed
	SubjectNotAllowed
	LifetimeNotAllowed
	VerificationFails
	TooManyTokens
	NoValidKeys
	NoMatchingKey
	FetchFails
)

func (s Status) String() string {
	texts := [...]string{
		OK:                  "OK",
		Missing:             "Jwt is missing",
		NotYetValid:         "Jwt not yet valid",
		Expired:             "Jwt is expired",
		BadFormat:           "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
		HeaderBadBase64:     "Jwt header is an invalid Base64url encoded",
		HeaderBadJSON:       "Jwt header is an invalid JSON",
		HeaderBadAlg:        "Jwt header [alg] field is required and must be a string",
		HeaderUnknownAlg:    "Jwt header [alg] is not supported",
		HeaderBadKid:        "Jwt header [kid] field is not a string",
		HeaderCritical:      "Jwt header has extensions that must be understood and are not supported",
		PayloadBadBase64:    "Jwt payload is an invalid Base64url encoded",
		PayloadBadJSON:      "Jwt payload is an invalid JSON",
		IssuerNotString:     "Jwt payload [iss] field is not a string",
		SubjectNotString:    "Jwt payload [sub] field is not a string",
		IssuedNotInteger:    "Jwt payload [iat] field is not an integer",
		IssuedOutOfRange:    "Jwt payload [iat] field is not a positive 64 bit integer",
		NotBeforeNotInteger: "Jwt payload [nbf] field is not an integer",
		NotBeforeOutOfRange: "Jwt payload [nbf] field is not a positive 64 bit integer",
		ExpiresNotInteger:   "Jwt payload [exp] field is not an integer",
		ExpiresOutOfRange:   "Jwt payload [exp] field is not a positive 64 bit integer",
		IDNotString:         "Jwt payload [jti] field is not a string",
		AudienceNotString:   "Jwt payload [aud] field is not a string or string list",
		SignatureBadBase64:  "Jwt signature is an invalid Base64url encoded",
		UnknownIssuer:       "Jwt issuer is not configured",
		AudienceNotAllowed:  "Audiences in Jwt are not allowed",
		SubjectNotAllowed:   "Jwt subject is not allowed",
		LifetimeNotAllowed:  "Jwt lifetime is not allowed",
		VerificationFails:   "Jwt verification fails",
		TooManyTokens:       "Found multiple Jwt tokens",
		NoValidKeys:         "Jwks doesn't have any valid public key",
		NoMatchingKey:       "Jwks doesn't have key to match kid or alg from Jwt",
		FetchFails:          "Jwks remote fetch is failed",
	}
	if int(s) < len(texts) && texts[s] != "" {
		return texts[s]
	}
	return "Jwt was not judged"
}

// Code is the HTTP status of a refusal.
func (s Status) Code() int {
	if s == AudienceNotAllowed {
		return http.StatusForbidden
	}
	return http.StatusUnauthorized
}
