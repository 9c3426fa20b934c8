package jwt

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/testkit/tokencorpus"
)

// TestVectors: what RFC 7515 (appendices A and E), 7519, 7520 (section 4), 7797 and 8037 print is judged right: as a token, and, where it is
// a sentence and no token, as a signature.
func TestVectors(t *testing.T) {
	v, err := tokencorpus.RFC()
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]*Keys{}
	for section, raw := range v.Keys {
		k, err := ParseKeys([]byte(`{"keys":[`+string(raw)+`]}`), false)
		if err != nil || k.Len() != 1 {
			t.Fatalf("key of RFC %s: %d keys, %v", section, k.Len(), err)
		}
		keys[section] = k
	}
	all := make([]string, 0, len(v.Keys))
	for _, raw := range v.Keys {
		all = append(all, string(raw))
	}
	every, err := ParseKeys([]byte(`{"keys":[`+strings.Join(all, ",")+`]}`), false)
	if err != nil {
		t.Fatal(err)
	}
	then, signed := tokencorpus.Then(), 0
	for _, one := range v.Vectors {
		t.Run(one.Section+" "+one.What, func(t *testing.T) {
			if got := judge(one.Token, every, then); got.String() != one.Verdict {
				t.Errorf("%v, want %s", got, one.Verdict)
			}
			if one.Verdict == OK.String() {
				if got := judge(one.Token, every, then.Add(time.Hour)); got != Expired {
					t.Errorf("an hour later: %v", got)
				}
			}
			for section, k := range keys {
				want := section == one.Key
				if got := signatureOf(one.Token, k); (got == OK) != want {
					t.Errorf("the signature with the key of RFC %s: %v", section, got)
				}
				if want {
					signed++
					tamper(t, one.Token, k)
				}
			}
		})
	}
	if signed < 10 {
		t.Errorf("only %d signatures were checked", signed)
	}
}

// signatureOf judges nothing but the signature, so that a payload may be a sentence.
func signatureOf(raw string, k *Keys) Status {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || parts[2] == "" || json.Valid([]byte(raw)) {
		return BadFormat
	}
	t := &Token{raw: raw}
	if s := t.parseHeader(parts[0]); s != OK {
		return s
	}
	return t.Verify(k)
}

// tamper changes one bit of each section in turn.
func tamper(t *testing.T, raw string, k *Keys) {
	t.Helper()
	for at := 1; at < len(raw); at += 31 {
		if raw[at] == '.' || at+1 == len(raw) || raw[at+1] == '.' {
			continue // the last character of a section has stray bits
		}
		other := byte('A')
		if raw[at] == other {
			other = 'Q'
		}
		if s := signatureOf(raw[:at]+string(other)+raw[at+1:], k); s == OK {
			t.Fatalf("a signature counts with character %d of %d changed", at, len(raw))
		}
	}
}
