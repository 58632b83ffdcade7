package api

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// NewToken makes a bearer token and its SHA-256, which is all that the server keeps.
func NewToken() (token string, hash []byte) {
	token = "htok-" + rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(token))
	return token, sum[:]
}

// Credentials are what a client needs to reach a server over TCP. WriteCredentials puts
// them where Find looks.
type Credentials struct {
	Server string `json:"server"` // https://127.0.0.1:8443, or unix:///run/heliotrope/api.sock
	Token  string `json:"token,omitempty"`
	CA     string `json:"ca,omitempty"` // PEM
}

// WriteCredentials writes them to path with mode 0600, all or nothing.
func WriteCredentials(path string, c Credentials) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode credentials: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".credentials-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write credentials: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// ReadCredentials reads what WriteCredentials wrote.
func ReadCredentials(path string) (Credentials, error) {
	var c Credentials
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read credentials in %s: %w", path, err)
	}
	return c, nil
}
