package tokencorpus

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"time"
)

//go:embed rfc.json
var rfc []byte

// Vectors are the signed and encrypted texts that RFCs 7515, 7519, 7520, 7797 and 8037 print, and the keys that they print for them.
type Vectors struct {
	Keys    map[string]json.RawMessage // a JWK by the section that prints it
	Vectors []Vector
}

// Vector is one text of a section.
type Vector struct {
	Section string
	What    string
	Token   string
	Verdict string // what a reader of tokens says at the moment Then, in Envoy's words; "OK" for a good one
	Key     string // section of the key that the signature verifies with, whatever the payload is; empty if the text has no form of a token
}

// Then is a moment at which the tokens of RFC 7515 are not expired yet.
func Then() time.Time { return time.Unix(1300819000, 0) }

// RFC reads the vectors.
func RFC() (Vectors, error) {
	var v Vectors
	if err := json.Unmarshal(rfc, &v); err != nil {
		return v, fmt.Errorf("rfc.json: %w", err)
	}
	return v, nil
}

// rfcCases are the vectors as requests to a service that does not know their issuer: no signature makes up for that.
func rfcCases() ([]Case, error) {
	v, err := RFC()
	out := make([]Case, 0, len(v.Vectors))
	for _, one := range v.Vectors {
		text := one.Verdict
		if text == "OK" {
			text = unknown
		}
		out = append(out, refused("RFC "+one.Section+" "+one.What, text, bearer(one.Token)))
	}
	return out, err
}
