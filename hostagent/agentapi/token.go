package agentapi

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"heliotrope"
	"regexp"
	"strings"
	"time"
)

// TokenTTL is how long a join token is good unless told otherwise.
const TokenTTL = time.Hour

const tokenPrefix = "HT10"

// Token lets one host join, once. It is written HT10<CA hash>.<id>.<secret>.
type Token struct {
	CAHash [32]byte // of the certificate of the controller's CA
	ID     string
	Secret string
}

// TokenRecord is what the controller keeps of a token: enough to check it, not to make it.
type TokenRecord struct {
	ID      string            `json:"id"`
	Hash    [32]byte          `json:"hash"` // of the secret
	Host    heliotrope.HostID `json:"host"` // which alone may join with it
	Expires time.Time         `json:"expires"`
	UsedAt  time.Time         `json:"used_at,omitzero"`
}

// NewToken makes a token for host and the record that the controller is to store.
func (ca *CA) NewToken(host heliotrope.HostID, ttl time.Duration) (Token, TokenRecord, error) {
	if !namePattern.MatchString(string(host)) {
		return Token{}, TokenRecord{}, fmt.Errorf("make token: %q is no host name", host)
	}
	id, secret := make([]byte, 8), make([]byte, 32)
	rand.Read(id)
	rand.Read(secret)
	t := Token{CAHash: ca.Hash(), ID: hex.EncodeToString(id), Secret: hex.EncodeToString(secret)}
	return t, TokenRecord{
		ID: t.ID, Hash: sha256.Sum256([]byte(t.Secret)), Host: host, Expires: time.Now().Add(ttl),
	}, nil
}

func (t Token) String() string {
	return tokenPrefix + hex.EncodeToString(t.CAHash[:]) + "." + t.ID + "." + t.Secret
}

var tokenPattern = regexp.MustCompile(`^HT10([0-9a-f]{64})\.([0-9a-f]{16})\.([0-9a-f]{64})$`)

// ParseToken reads what Token.String wrote. Its errors do not repeat the secret.
func ParseToken(s string) (Token, error) {
	if len(s) > 256 {
		return Token{}, fmt.Errorf("parse token: it has %d characters", len(s))
	}
	m := tokenPattern.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return Token{}, fmt.Errorf("parse token: it must be %s and three groups of hex digits with dots between them", tokenPrefix)
	}
	t := Token{ID: m[2], Secret: m[3]}
	_, err := hex.Decode(t.CAHash[:], []byte(m[1]))
	return t, err
}

const newToken = "make a new one with 'heliotrope host token create HOST'"

// Check says whether req may join with this token at now; if not, the error is ErrRefused.
// The caller stores UsedAt in the same transaction that it read the record in.
func (r TokenRecord) Check(req JoinRequest, now time.Time) error {
	sum := sha256.Sum256([]byte(req.Secret))
	switch {
	case r.ID == "" || req.TokenID != r.ID || subtle.ConstantTimeCompare(sum[:], r.Hash[:]) != 1:
		// Only who knows the secret learns more.
		return fmt.Errorf("%w: unknown join token; %s", ErrRefused, newToken)
	case !r.UsedAt.IsZero():
		return fmt.Errorf("%w: the join token was used at %s; %s", ErrRefused, r.UsedAt.UTC().Format(time.RFC3339), newToken)
	case !now.Before(r.Expires):
		return fmt.Errorf("%w: the join token expired at %s; %s", ErrRefused, r.Expires.UTC().Format(time.RFC3339), newToken)
	}
	return nil
}
