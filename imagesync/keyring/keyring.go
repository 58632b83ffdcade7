// Package keyring keeps the keys of image stores: the private ones with which a user may sign, and
// for each store the public one that it had when it was first opened. Whoever can write to a bucket could
// else put a store of his own there.
package keyring

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Dir is a directory of keys, which is made when the first is written.
type Dir string

const knownFile = "known-stores.json"

// Trust remembers whose key a store has, or checks that it still has that. One that was made
// just now, by us, takes the place of what was there before.
func (d Dir) Trust(where string, key ed25519.PublicKey, ours bool) error {
	known := map[string]ed25519.PublicKey{}
	file := filepath.Join(string(d), knownFile)
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if was, ok := known[where]; ok && !ours {
		if !bytes.Equal(was, key) {
			return fmt.Errorf("%s is signed with another key than it was: if it was made anew, delete its line in %s; if not, somebody has replaced it", where, file)
		}
		return nil
	}
	known[where] = key
	if b, err = json.MarshalIndent(known, "", "  "); err == nil {
		err = d.write(knownFile, b)
	}
	return err
}

// Generate makes the key of a new store.
func (d Dir) Generate() (ed25519.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return public, d.write(keyFile(public), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func keyFile(key ed25519.PublicKey) string { return hex.EncodeToString(key[:8]) + ".key" }

// Private is the key that signs for a public one; nil if it is not here.
func (d Dir) Private(public ed25519.PublicKey) (ed25519.PrivateKey, error) {
	file := filepath.Join(string(d), keyFile(public))
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read key: %s is no PEM file", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", file, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok || !bytes.Equal(key.Public().(ed25519.PublicKey), public) {
		return nil, fmt.Errorf("read key: %s is not the store's", file)
	}
	return key, nil
}

func (d Dir) write(name string, content []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("make directory of keys: %w", err)
	}
	part, err := os.CreateTemp(string(d), ".part-") // readable by its owner alone
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(part.Name())
	_, err = part.Write(content)
	if err = errors.Join(err, part.Sync(), part.Close()); err == nil {
		err = os.Rename(part.Name(), filepath.Join(string(d), name))
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}
