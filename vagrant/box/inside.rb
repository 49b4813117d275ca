# What this box itself asks for, whatever Vagrantfile uses it.
Vagrant.configure("2") do |config|
  config.vm.guest = :debian
  config.vm.base_mac = "080027D14C66" # VirtualBox asks for one
  config.vm.provider :libvirt do |v|
    v.disk_bus = "virtio"
  end
end
