package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// settle gives every flag that is not on the command line its value from the environment
// or the configuration file, in this order.
func settle(v *viper.Viper, flags *pflag.FlagSet) error {
	v.SetEnvPrefix("heliotrope")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	if err := v.BindPFlags(flags); err != nil {
		return fmt.Errorf("read flags: %w", err)
	}
	v.SetConfigFile(v.GetString("config"))
	if err := v.ReadInConfig(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read configuration: %w", err)
	}
	for _, key := range v.AllKeys() {
		f := flags.Lookup(key)
		if f == nil && v.InConfig(key) && key != "token" {
			return fmt.Errorf("read configuration: %s has %q, which is no setting", v.ConfigFileUsed(), key)
		}
		if f != nil && !f.Changed {
			if err := f.Value.Set(v.GetString(key)); err != nil {
				return fmt.Errorf("read setting %s: %w", key, err)
			}
		}
	}
	return nil
}
