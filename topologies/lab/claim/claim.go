// Package claim is how what runs in the lab says what was required of a figure, and whether
// it held: as JSON for a program, as an error for people.
package claim

import (
	"errors"
	"fmt"
)

// Claim is one figure that something is required of.
type Claim struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Op    string  `json:"op"` // "<=", ">=", "==", or ">", which with 0 says that it was measured
	Bound float64 `json:"bound"`
	Holds bool    `json:"holds"`
}

// New judges value against bound by op.
func New(name string, value float64, op string, bound float64) Claim {
	holds := map[string]bool{"<=": value <= bound, ">=": value >= bound, "==": value == bound, ">": value > bound}[op]
	return Claim{name, value, op, bound, holds}
}

// Failed is an error that names each claim that does not hold; nil when all do.
func Failed(claims []Claim) error {
	var all []error
	for _, c := range claims {
		if !c.Holds {
			all = append(all, fmt.Errorf("%s: %g, must be %s %g", c.Name, c.Value, c.Op, c.Bound))
		}
	}
	return errors.Join(all...)
}
