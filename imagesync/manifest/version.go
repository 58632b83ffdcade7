package manifest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Version is one state of an image, for good.
type Version struct {
	Image   string    `json:"image"`
	Number  int       `json:"version"`       // 1, 2, …: the newest is what an image is
	Root    ID        `json:"root"`          // of its Manifest
	Size    int64     `json:"size_bytes"`    // that a guest sees
	Content int64     `json:"content_bytes"` // of chunks that are not zeros
	Parent  ID        `json:"parent,omitzero"`
	Epoch   uint64    `json:"epoch"` // the writer's: an older one than the newest version's is refused
	Created time.Time `json:"created"`
	From    string    `json:"from,omitempty"` // what it was made of, for people
}

// Ref is how people write it: IMAGE@VERSION.
func (v Version) Ref() string { return fmt.Sprintf("%s@%d", v.Image, v.Number) }

// Sealed is a version of which all is in the store but that it is one: somebody who has the key is to publish it.
// Its number is not known yet. It is worth something as long as its writer does not Abort.
type Sealed struct {
	Version
	Lease string `json:"lease"` // its writer's
}

// signed is a version as it is stored. What is signed is its very bytes.
type signed struct {
	Version   json.RawMessage `json:"signed"`
	Signature []byte          `json:"signature"`
}

// signDomain keeps a signature from being worth anything elsewhere.
const signDomain = "heliotrope image version 1\n"

// Sign is the version as bytes, signed.
func Sign(v Version, key ed25519.PrivateKey) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode version: %w", err)
	}
	return json.Marshal(signed{body, ed25519.Sign(key, append([]byte(signDomain), body...))})
}

// ErrSignature is that of a version that its key did not sign.
var ErrSignature = errors.New("the signature is wrong: it was changed, or signed with another key")

// Verify reads what Sign wrote and checks it.
func Verify(b []byte, key ed25519.PublicKey) (Version, error) {
	var s signed
	if err := json.Unmarshal(b, &s); err != nil {
		return Version{}, fmt.Errorf("read version: %w", err)
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(signDomain), s.Version...), s.Signature) {
		return Version{}, fmt.Errorf("read version: %w", ErrSignature)
	}
	// There is one way to write it: a bit that means nothing was flipped all the same.
	if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, b) {
		return Version{}, fmt.Errorf("read version: %w", ErrSignature)
	}
	var v Version
	if err := json.Unmarshal(s.Version, &v); err != nil {
		return Version{}, fmt.Errorf("read version: %w", err)
	}
	if v.Size < 0 || v.Size > MaxSize || v.Number < 1 || CheckName(v.Image) != nil {
		return Version{}, fmt.Errorf("read version: %s of %d bytes cannot be", v.Ref(), v.Size)
	}
	return v, nil
}

const maxName = 63

// CheckName says whether an image may be called so, and else how: the same words as in a
// topology, where it is the name of a directory on the hosts.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > maxName || strings.Trim(name, letters+"._-") != "" || !strings.Contains(letters, name[:1]) {
		return fmt.Errorf("%.80q is no name of an image: use letters, digits, and after the first . _ -; at most %d", name, maxName)
	}
	return nil
}
