package rest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"heliotrope/controller/api"
)

// Find takes what the user named, else what is configured, else what runs here; and brings
// the token and the CA of a server that it knows.
func TestFind(t *testing.T) {
	s := serve(t, Options{})
	root := t.TempDir()
	home := filepath.Join(root, "home")
	state := filepath.Join(root, "var/lib/heliotrope/controller/credentials")
	tokenFile, caFile := filepath.Join(root, "token"), filepath.Join(root, "ca.pem")
	if err := errors.Join(os.WriteFile(tokenFile, []byte(testToken+"\n"), 0o600), os.WriteFile(caFile, []byte(s.ca), 0o600)); err != nil {
		t.Fatal(err)
	}
	ask := func(p api.Place) error {
		p.Root, p.Home = root, home
		c, err := api.Find(p)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.VMs(t.Context())
		return err
	}
	wants := func(what string, p api.Place, want func(error) bool) {
		t.Helper()
		if err := ask(p); !want(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ok := func(err error) bool { return err == nil }
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }

	wants("nothing", api.Place{}, is(api.ErrNoServer))
	wants("no such lab", api.Place{Lab: "x"}, is(api.ErrNoServer))
	wants("server and lab", api.Place{Lab: "x", Server: "/y"}, is(api.ErrServerName))
	wants("http", api.Place{Server: "http://127.0.0.1"}, is(api.ErrServerName))
	wants("socket", api.Place{Server: "unix://" + s.unix}, ok)
	wants("path", api.Place{Server: s.unix}, ok)
	wants("https with files", api.Place{Server: s.tcp, TokenFile: tokenFile, CAFile: caFile}, ok)
	wants("https with token", api.Place{Server: s.tcp, Token: testToken, CAFile: caFile}, ok)
	wants("https without CA", api.Place{Server: s.tcp, Token: testToken}, func(err error) bool { return err != nil })
	wants("https without token", api.Place{Server: s.tcp, CAFile: caFile}, func(err error) bool {
		var p *api.Problem
		return errors.As(err, &p) && p.Type == api.TypeNoAuth
	})
	if err := api.WriteCredentials(state, api.Credentials{Server: s.tcp, Token: testToken, CA: s.ca}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials are %v, %v", info, err)
	}
	wants("the controller's own credentials", api.Place{}, ok)
	wants("https known", api.Place{Server: s.tcp + "/"}, ok)
	if err := api.WriteCredentials(filepath.Join(home, ".config/heliotrope/config"), api.Credentials{Server: "/nowhere.sock"}); err != nil {
		t.Fatal(err)
	}
	wants("the user's configuration is first", api.Place{}, is(os.ErrNotExist))
	if err := os.WriteFile(filepath.Join(home, ".config/heliotrope/config"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wants("a broken configuration", api.Place{}, func(err error) bool { return err != nil && !errors.Is(err, api.ErrNoServer) })
}
