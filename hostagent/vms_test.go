package hostagent

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
)

// A host with Open vSwitch only refuses an order about a VM at once: no libvirt will come.
func TestHostWithoutHypervisorRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vms{config: Config{Libvirt: NoLibvirt}, host: "us-1", revoked: &revoked{}}
		began := time.Now()
		err := v.PutVM(t.Context(), agentapi.VMOrder{Term: 1, VM: "web", Epoch: 1, Spec: heliotrope.VM{Image: "tiny"}})
		if !errors.Is(err, agentapi.ErrInvalid) {
			t.Errorf("put: got %v, want ErrInvalid", err)
		}
		if err := v.RemoveVM(t.Context(), agentapi.RemoveOrder{Term: 1, VM: "web", Epoch: 1}); !errors.Is(err, agentapi.ErrInvalid) {
			t.Errorf("remove: got %v, want ErrInvalid", err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v", waited)
		}
	})
}
