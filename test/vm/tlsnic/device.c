// SPDX-License-Identifier: GPL-2.0-only
/*
 * The two interfaces tlsnic0 and tlsnic1, and the wire between them.
 */
#include <linux/debugfs.h>
#include <linux/etherdevice.h>
#include <linux/module.h>

#include "tlsnic.h"

static struct net_device *devices[2];
static struct dentry *debug_dir;

/* deliver takes a packet to the other end than the one that sent it. */
static void deliver(struct sk_buff *skb)
{
	struct tlsnic_port *from;

	if (!skb)
		return;
	from = netdev_priv(skb->dev);
	tlsnic_receive(from->peer, skb);
	dev_forward_skb(from->peer->dev, skb);
}

/* transmit is serialized by the lock of the only queue. */
static netdev_tx_t transmit(struct sk_buff *skb, struct net_device *dev)
{
	struct tlsnic_port *port = netdev_priv(dev);
	struct sk_buff *late;
	bool drops;
	u32 payload;

	skb = tlsnic_transmit(port, skb);
	if (!skb)
		return NETDEV_TX_OK;
	skb->dev = dev;
	payload = tlsnic_payload(skb);
	spin_lock_bh(&tlsnic_lock);
	drops = tlsnic_drops(skb, payload);
	late = drops ? NULL : tlsnic_overtaken(&skb, payload);
	spin_unlock_bh(&tlsnic_lock);
	if (drops) {
		kfree_skb(skb);
		return NETDEV_TX_OK;
	}
	deliver(skb);
	deliver(late);
	return NETDEV_TX_OK;
}

static const struct net_device_ops device_ops = {
	.ndo_start_xmit = transmit,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

static void set_up(struct net_device *dev)
{
	ether_setup(dev);
	dev->netdev_ops = &device_ops;
	dev->tlsdev_ops = &tlsnic_tlsdev_ops;
	dev->hw_features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_RXCSUM | NETIF_F_HW_TLS_TX | NETIF_F_HW_TLS_RX;
	dev->features |= dev->hw_features;
	eth_hw_addr_random(dev);
}

static void remove_devices(void)
{
	int i;

	/* First both: until then each may send to the other. */
	for (i = 0; i < 2; i++)
		if (devices[i] && devices[i]->reg_state == NETREG_REGISTERED)
			unregister_netdev(devices[i]);
	for (i = 0; i < 2; i++)
		if (devices[i])
			free_netdev(devices[i]);
}

static int add_devices(void)
{
	struct tlsnic_port *ports[2];
	int i, err;

	for (i = 0; i < 2; i++) {
		devices[i] = alloc_netdev(sizeof(struct tlsnic_port), "tlsnic%d", NET_NAME_ENUM, set_up);
		if (!devices[i])
			return -ENOMEM;
		ports[i] = netdev_priv(devices[i]);
		ports[i]->dev = devices[i];
	}
	for (i = 0; i < 2; i++) {
		ports[i]->peer = ports[1 - i];
		err = register_netdev(devices[i]);
		if (err)
			return err;
	}
	return 0;
}

static int __init tlsnic_init(void)
{
	int err = add_devices();

	if (err) {
		remove_devices();
		return err;
	}
	debug_dir = debugfs_create_dir("tlsnic", NULL);
	tlsnic_table_show(debug_dir);
	tlsnic_control_show(debug_dir);
	return 0;
}

static void __exit tlsnic_exit(void)
{
	debugfs_remove(debug_dir);
	remove_devices();
	tlsnic_control_free();
	tlsnic_table_free();
}

module_init(tlsnic_init);
module_exit(tlsnic_exit);
MODULE_DESCRIPTION("Emulated network devices with TLS offload, for tests");
MODULE_LICENSE("GPL");
