package hostagent

import (
	"context"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/capture"
	"heliotrope/hostagent/durable"
	"heliotrope/scheduler/traffic"
)

var _ agentapi.Counter = counter{}

// counter counts who talks to whom, as the newest controller wants it.
type counter struct {
	*capture.Capture
	ledger *durable.Ledger
}

// Count takes an order in place of the one before.
func (c counter) Count(_ context.Context, o agentapi.CaptureOrder) error {
	if err := c.ledger.Fence(o.Term); err != nil {
		return err
	}
	c.Set(o.Orders)
	return nil
}

// Bins are what was counted.
func (c counter) Bins(ctx context.Context, boot string, after uint64) ([]traffic.Bin, error) {
	return c.Capture.Bins(ctx, boot, after)
}
